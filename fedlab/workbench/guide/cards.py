"""A card beside each preset: what to look at, a question, what happens, and what to turn next.

What a card claims holds for seeds 0, 1 and 2 on the bundled data; `tests/workbench/test_claims.py`
asserts it. Figures of ndcg@10 are on the validation part.
"""

from dataclasses import dataclass

from fedlab.core import require


@dataclass(frozen=True)
class Card:
    """Short sentences beside a preset, each a text of its own.

    look: what to look at. ask: a question, to be answered before anything runs. answer: what
    happens, shown when it is asked for. turn: what to turn next. Raises `ParameterError` for one
    that says nothing.

    >>> Card("Look at the loss.", "Does it fall?", "Yes.", "Turn the learning rate.").ask
    'Does it fall?'
    """

    look: str
    ask: str
    answer: str
    turn: str

    def __post_init__(self) -> None:
        """Check that there are words."""
        for name in ("look", "ask", "answer", "turn"):
            said = getattr(self, name)
            right = isinstance(said, str) and bool(said.strip())
            require(right, name, said, "write a short sentence")


CARDS = {
    "671 users, matrix factorisation": Card(
        "Look at ndcg@10 and the dashed line of popularity, which knows nothing of anybody.",
        "Each user takes part in about 6 of the 60 rounds: how soon is the model above popularity?",
        "Not within 10 rounds. It climbs to about popularity, stays there for a while, and ends "
        "above it.",
        "Turn the cohort, and see what more or fewer users a round are worth.",
    ),
    "few clients: 8 users a round": Card(
        "Look at ndcg@10, round by round, and at the dashed line of popularity.",
        "Do 200 rounds of 8 users come as far as 60 rounds of 64?",
        "No: they come about as far as popularity. 1,600 turns of users are fewer than 3,840.",
        "Turn rounds up, or the server's learning rate.",
    ),
    "10 platforms that differ in taste": Card(
        "Look at the loss on what is trained on, and at ndcg@10 on what is held out.",
        "Ten platforms hold all clicks, and all take part in each round. Is the last round the "
        "best one?",
        "No: the loss falls until the end, and ndcg@10 is best before. The rest is learned by "
        "heart.",
        "Turn alpha: the larger it is, the more alike the platforms are.",
    ),
    "practice: 10 e-commerce platforms, averaged": Card(
        "Look at ndcg@10 in the first ten rounds.",
        "How many rounds of ten large clients are worth sixty rounds of 64 single users?",
        "Ten, or fewer: by then it is above where the first preset ends.",
        "Turn the local learning rate, or local epochs.",
    ),
    "practice: 5 video platforms, the best model selected": Card(
        "Look at ndcg@10, and at MB up under Charts.",
        "The server keeps the models that do best, and what is learned is a small model of genres: "
        "does it beat popularity?",
        "Yes, within 20 of 30 rounds, with 12 MB up in all.",
        "Turn aggregation to weighted mean.",
    ),
    "asynchronous: a buffer of 10": Card(
        "Look at staleness: how many steps old an update is when it counts.",
        "The server steps after each ten updates, which began from older parameters. Does it "
        "learn in spite of that?",
        "Yes: updates are several steps old at the end, and ndcg@10 ends above popularity.",
        "Turn the buffer.",
    ),
    "private: a clip, and noise on the sum": Card(
        "Look at ndcg@10 beside popularity, and at what the status line says of ε.",
        "Noise hides each person. What is left of the model, and how well is one hidden?",
        "Little, and hardly: it stays far below popularity, and a bet on one person may be right "
        "over a million times for each time that it is wrong. Every number of the model gets "
        "noise, and few people stand against it.",
        "Turn noise down and up, or try the challenge of ε.",
    ),
    "an eighth of the bytes up: 4 bits a number": Card(
        "Look at MB up and MB down under Charts, and at ndcg@10.",
        "Numbers are sent in 4 bits and not in 32. What does that cost?",
        "Nothing that is seen: ndcg@10 ends within 0.01 of the first preset. MB up are an eighth, "
        "MB down stay as they were.",
        "Choose none as uplink, start, and compare the two runs.",
    ),
    "under attack: one in ten lies, the median holds": Card(
        "Look at ndcg@10, and at the norms under Charts.",
        "One client in ten sends minus five times what it learned. Where does the median end?",
        "Within 0.02 of where all are honest: of each number it takes the middle one, however "
        "large others are.",
        "Turn aggregation to weighted mean: it ends lower.",
    ),
    "implicit: users solve their own vectors": Card(
        "Look at ndcg@10 after the very first rounds.",
        "Users solve for their own vector, exactly, and do not step. How many rounds does it take "
        "to beat popularity?",
        "One. After 5 rounds it is above where all presets before it in the list end.",
        "Turn recency: how much more the last clicks count where a user gets recommendations.",
    ),
    "EASE: which items are clicked together": Card(
        "Look at MB down, and at ndcg@10 after each round.",
        "Clients fetch nothing and train nothing: they count. Does one round of 64 users beat "
        "popularity?",
        "Yes, and ten rounds are better. But pairs of clicks tell as much as the clicks: they "
        "are for a secure sum.",
        "Turn the cohort.",
    ),
    "texts and clicks: what MiniLM says of a film": Card(
        "Look at ndcg@10 in the first rounds, and at the end.",
        "It knows the text of each film before anybody has clicked. Does it begin above chance?",
        "Hardly: what users like is yet to be learned. It ends above where clicks alone come in "
        "the first preset.",
        "Turn the server's learning rate.",
    ),
    "MiniLM fine-tuned by adapters, minutes to begin": Card(
        "Look at MB up: only adapters are sent, and not the language model.",
        "MiniLM has 22.7 million numbers. How many of them does a client send?",
        "None: it sends adapters of the last layers, and what stands on top of them.",
        "Turn the server's learning rate.",
    ),
    "stars, not clicks": Card(
        "Look at rmse, the error in stars, where lower is better, and at the dashed lines.",
        "The mean of each user knows nothing of films. How soon is the model better?",
        "After half of the rounds, about; and at the end by about a hundredth of a star.",
        "Turn the local learning rate.",
    ),
}
