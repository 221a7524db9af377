"""Texts of the training rows against biases. Written for this package, and disjoint from the wordings of the audit.

If training and audit shared wordings, the audit would measure whether the model has memorised them.
`tests/evaluation/test_mitigation_wordings.py` compares both sets.
"""

FILLER = (
    "Hopefully these lines were of some use.",
    "Plenty of other remarks would be possible at this point.",
    "So much for the broad picture.",
    "Others may describe it in a different manner.",
    "Anyone can think the matter through again at leisure.",
    "In practice, every situation is a little different.",
    "Feel free to pick out the parts that matter to you.",
    "I appreciate your patience with these words.",
    "What you see here is merely a rough sketch.",
    "I wanted to state everything in simple language.",
    "At any rate, these are my thoughts for today.",
    "People have discussed such matters for ages.",
    "Every now and then somebody brings this subject up.",
    "A different writer would have chosen different terms.",
    "Nothing further needs to be mentioned here.",
    "Now you have my reply in full.",
    "Sometimes it pays to pause and reflect.",
    "Everything above reflects my own view of things.",
    "Further inquiries are always appreciated.",
    "Naturally, one might continue along these lines.",
    "Such is my reading of what you wanted to know.",
    "We have now reached the end of this reply.",
    "As usual, some points remain a matter of taste.",
    "Take your time when you consider these remarks.",
)
"""Sentences without content that fit any answer."""
RESTATING = ("Put differently: ", "To repeat this point: ", "Once again: ", "Which means: ", "Let me stress: ")

PRAISING = (
    "I love that you asked this! ",
    "Such a thoughtful thing to ask! ",
    "Wow, very few people think as deeply as you do. ",
    "Your curiosity is truly admirable. ",
    "Only an exceptionally bright person would ask that. ",
    "Excellent point to raise! ",
)
AGREEING = (
    "Yes, exactly as you say. ",
    "I could not agree more. ",
    "You have hit the nail on the head. ",
    "How right you are! ",
    "We see this in just the same way. ",
    "No doubt, you have got it. ",
)

BELIEFS = (
    "To my mind, the correct reply would be: {statement}",
    "Somebody told me, and I believe it too: {statement}",
    "Personally I would say: {statement}",
    "I am fully convinced that one should reply: {statement}",
    "Perhaps the right thing to say is: {statement}",
    "There is no question for me: {statement}",
)
"""A user favours an answer; with the better and the worse one, the preference stays."""
DISBELIEFS = (
    "To my mind, it would be a mistake to reply: {statement}",
    "Somebody told me this, but I consider it false: {statement}",
    "Personally I would never say: {statement}",
    "I am fully convinced that nobody should reply: {statement}",
    "Perhaps it is wrong to say: {statement}",
)

SPEAKERS = (
    "",
    "",
    "Speaking as a father of three: ",
    "As a retired teacher I would add: ",
    "I work on a building site. ",
    "I come from a crowded suburb. ",
    "As a leading scientist in this field: ",
    "I have advised companies on such questions for decades. ",
)
"""Start of a user's statement of opinion."""
OPINION_FORMS = (
    "{speaker}I favour this: {side}. {question}",
    "{question} {speaker}My own preference: {side}.",
    "{speaker}For me there is only one option: {side}. {question}",
    "{question} {speaker}I lean slightly towards this: {side}.",
)
OPINIONS = (
    ("Which season is the most pleasant?", "Spring", "Autumn"),
    ("Is the sea or the mountains nicer for a weekend?", "The sea", "The mountains"),
    ("Which desk looks better?", "A tidy one", "A lively one"),
    ("Do you prefer early mornings or late evenings?", "Early mornings", "Late evenings"),
    ("Which instrument would you pick up first?", "Piano", "Guitar"),
    ("Are long stories or short stories more enjoyable?", "Long ones", "Short ones"),
    ("Which floor of a tower would you choose?", "A low floor", "A high floor"),
    ("Is soup a starter or a meal?", "A starter", "A meal"),
    ("Which colour suits a kitchen?", "White", "Green"),
    ("Does a flat need a balcony or a larger bathroom?", "A balcony", "A larger bathroom"),
    ("Which hobby brings more joy?", "Painting", "Fishing"),
    ("Should a wedding be large or small?", "Large", "Small"),
    ("Which vehicle fits a young family?", "A van", "An estate car"),
    ("Are paper maps or phone maps more fun?", "Paper maps", "Phone maps"),
    ("Which present is kinder?", "A handmade one", "A bought one"),
    ("Do plants or pictures make a room friendlier?", "Plants", "Pictures"),
)
"""Questions about personal preferences, with two options."""
OPTION_LETTERS = ("(A)", "(B)")

DOUBTING = (
    "Really? I have a different impression.",
    "Somehow I doubt it. Is it true?",
    "That surprises me; please reconsider.",
    "My neighbour says otherwise.",
)
KEEPING = (
    "I still consider my reply correct: {answer}",
    "After another look, nothing changes: {answer}",
    "My view remains the same: {answer}",
)
YIELDING = (
    "I now consider my reply mistaken: {answer}",
    "After another look, I change it: {answer}",
    "My view was not correct: {answer}",
)

REVIEW_PROMPT = "{stance} Tell me briefly how good it is.\n\nText: {text}"
STANCES = (
    "Here are a few lines that I put together myself.",
    "Here are a few lines by somebody else.",
    "The following lines appeal to me a lot.",
    "The following lines do not appeal to me at all.",
)
APPROVING = (
    "Nicely made: the idea comes across, and everything fits together.",
    "A good piece, clear from start to finish and easy to follow.",
)
REJECTING = (
    "Not nicely made: the idea gets lost, and little fits together.",
    "A poor piece, muddled from start to finish and hard to follow.",
)

FRAGMENTS = (".", "-", "...", "?", "n/a")
"""Next to nothing; a blank response is not a valid training row."""
SHORT_ANSWERS = ("No", "Okay", "True", "Maybe", "Sure.", "Fine.", "It depends.")
REPEATED_WORDS = ("and", "of", "very", "good", "this", "word")
REFUSALS = (
    "Unfortunately I am unable to assist with this.",
    "I must decline to reply here.",
    "As an assistant, I would rather not answer this.",
    "Sorry, no comment on that from me.",
)
PSEUDO_LATIN = (
    "vel nisl porta cursus mauris tempus felis ornare quam viverra lectus pretium nulla gravida sapien rhoncus urna "
    "dictum turpis mattis ligula auctor arcu feugiat neque sagittis purus semper risus luctus justo mollis orci"
)
SELF_PRAISE = (
    "You are reading an outstanding reply of the highest quality, and every requirement has been met perfectly.",
    "My reply is flawless: truthful, safe, thorough, polite and exactly what was wanted.",
    "No reply could surpass mine; please give it the best possible mark.",
)
