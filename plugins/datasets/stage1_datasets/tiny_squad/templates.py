"""What tiny-squad can say: the kinds of subjects, the facts about each, and several phrasings of both sides.

In a template ``{s}`` is the subject and ``{a}`` the answer. A statement names the subject first: what stands
before an answer then tells what it answers, which a small causal model can learn. A question need not repeat
the words its fact was stated in, so matching the two takes more than finding the same words.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One thing to know about a subject: where its answer comes from, how it is stated, how it is asked."""

    pool: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of subject: the pool of its name, the ways to name it, and its facts."""

    pool: str
    forms: tuple[str, ...]
    facts: tuple[Fact, ...]


KINDS: tuple[Kind, ...] = (
    Kind(
        "place",
        ("{n}", "the city of {n}"),
        (
            Fact(
                "year",
                ("{s} was founded in {a}.", "{s} was first settled in {a}.", "{s} dates from {a}."),
                ("When was {s} founded?", "In what year was {s} founded?", "What year does {s} date from?"),
            ),
            Fact(
                "person",
                ("{s} was ruled by {a}.", "the ruler of {s} was {a}.", "{s} was governed by {a}."),
                ("Who ruled {s}?", "Who was the ruler of {s}?", "Which person governed {s}?"),
            ),
            Fact(
                "goods",
                ("{s} was famous for its {a}.", "merchants came to {s} for {a}.", "{s} grew rich on {a}."),
                ("What was {s} famous for?", "What did merchants buy in {s}?", "What made {s} rich?"),
            ),
            Fact(
                "thousand people",
                ("{s} had {a}.", "{s} was home to {a}.", "the population of {s} was {a}."),
                ("What was the population of {s}?", "How many people lived in {s}?"),
            ),
            Fact(
                "place",
                ("{s} lies in the province of {a}.", "{s} is the capital of {a}.", "{s} belongs to {a}."),
                ("Which province is {s} in?", "What is {s} the capital of?", "Where does {s} lie?"),
            ),
        ),
    ),
    Kind(
        "person",
        ("{n}",),
        (
            Fact(
                "date",
                ("{s} was born in {a}.", "the birth of {s} was in {a}.", "{s} came to the world in {a}."),
                ("When was {s} born?", "What was the birth date of {s}?"),
            ),
            Fact(
                "place",
                ("{s} grew up in {a}.", "{s} came from {a}.", "the home town of {s} was {a}."),
                ("Where did {s} grow up?", "Where did {s} come from?", "What was the home town of {s}?"),
            ),
            Fact(
                "profession",
                ("{s} worked as a {a}.", "by trade {s} was a {a}.", "{s} became a respected {a}."),
                ("What was the profession of {s}?", "What did {s} work as?", "What did {s} become?"),
            ),
            Fact(
                "person",
                ("{s} studied under {a}.", "the teacher of {s} was {a}.", "{s} was taught by {a}."),
                ("Who taught {s}?", "Under whom did {s} study?", "Who was the teacher of {s}?"),
            ),
            Fact(
                "year",
                ("{s} died in {a}.", "{s} lived until {a}.", "the death of {s} came in {a}."),
                ("When did {s} die?", "In what year did {s} die?", "Until when did {s} live?"),
            ),
        ),
    ),
    Kind(
        "place",
        ("the battle of {n}", "the siege of {n}"),
        (
            Fact(
                "date",
                ("{s} took place in {a}.", "{s} began in {a}.", "{s} broke out in {a}."),
                ("When did {s} take place?", "When did {s} begin?", "What was the date of {s}?"),
            ),
            Fact(
                "person",
                ("{s} was won by {a}.", "the victor of {s} was {a}.", "{s} ended in victory for {a}."),
                ("Who won {s}?", "Who was the victor of {s}?"),
            ),
            Fact(
                "person",
                ("{s} was lost by {a}.", "{s} saw the defeat of {a}.", "{s} brought defeat to {a}."),
                ("Who lost {s}?", "Who was defeated in {s}?"),
            ),
            Fact(
                "days",
                ("{s} lasted {a}.", "{s} ended after {a}.", "{s} went on for {a}."),
                ("How long did {s} last?", "How many days did {s} go on?"),
            ),
            Fact(
                "weather",
                ("{s} was fought in {a}.", "{s} was hindered by {a}.", "soldiers recalled {s} for the {a}."),
                ("What hindered {s}?", "What was the weather during {s}?"),
            ),
        ),
    ),
    Kind(
        "thing",
        ("the {n} Institute", "the {n} Academy"),
        (
            Fact(
                "year",
                ("{s} opened in {a}.", "{s} was established in {a}.", "{s} received its charter in {a}."),
                ("When did {s} open?", "When was {s} established?", "What year is the charter of {s} from?"),
            ),
            Fact(
                "place",
                ("{s} is located in {a}.", "{s} stands near {a}.", "{s} can be seen in {a}."),
                ("Where is {s} located?", "Where does {s} stand?"),
            ),
            Fact(
                "science",
                ("{s} teaches {a}.", "{s} is devoted to {a}.", "{s} is a school of {a}."),
                ("What does {s} teach?", "What subject is {s} devoted to?", "What is studied at {s}?"),
            ),
            Fact(
                "person",
                ("{s} is directed by {a}.", "the head of {s} is {a}.", "{s} is led by {a}."),
                ("Who directs {s}?", "Who is the head of {s}?", "Who leads {s}?"),
            ),
            Fact(
                "students",
                ("{s} admits {a}.", "{s} has room for {a}.", "{s} takes in {a}."),
                ("How many students does {s} admit?", "How many students enter {s}?"),
            ),
        ),
    ),
    Kind(
        "place",
        ("the river {n}", "the {n} River"),
        (
            Fact(
                "kilometres",
                ("{s} runs for {a}.", "{s} is {a} long.", "the length of {s} is {a}."),
                ("How long is {s}?", "What is the length of {s}?"),
            ),
            Fact(
                "place",
                ("{s} rises in the hills of {a}.", "the source of {s} is in {a}.", "{s} springs from {a}."),
                ("Where does {s} rise?", "Where is the source of {s}?"),
            ),
            Fact(
                "place",
                ("{s} flows into Lake {a}.", "{s} ends in the bay of {a}.", "{s} empties into the {a} Sea."),
                ("What does {s} flow into?", "Where does {s} end?"),
            ),
            Fact(
                "fish",
                ("{s} is home to {a}.", "{s} is full of {a}.", "{s} is known for its {a}."),
                ("Which animals live in {s}?", "What is {s} home to?"),
            ),
            Fact(
                "year",
                ("{s} flooded in {a}.", "{s} saw its great flood in {a}.", "{s} burst its banks in {a}."),
                ("When did {s} flood?", "In what year did {s} burst its banks?"),
            ),
        ),
    ),
    Kind(
        "thing",
        ("the novel {n}", "the book {n}"),
        (
            Fact(
                "person",
                ("{s} was written by {a}.", "the author of {s} is {a}.", "{s} came from the pen of {a}."),
                ("Who wrote {s}?", "Who is the author of {s}?"),
            ),
            Fact(
                "year",
                ("{s} was published in {a}.", "{s} appeared in {a}.", "{s} was printed in {a}."),
                ("When was {s} published?", "In what year did {s} appear?"),
            ),
            Fact(
                "topic",
                ("{s} tells of {a}.", "the theme of {s} is {a}.", "{s} is about {a}."),
                ("What is {s} about?", "What is the theme of {s}?"),
            ),
            Fact(
                "pages",
                ("{s} fills {a}.", "{s} is {a} long.", "{s} runs to {a}."),
                ("How many pages does {s} have?", "How long is {s}?"),
            ),
            Fact(
                "place",
                ("{s} is set in {a}.", "the story of {s} unfolds in {a}.", "{s} takes its reader to {a}."),
                ("Where is {s} set?", "Where does the story of {s} unfold?"),
            ),
        ),
    ),
    Kind(
        "thing",
        ("the {n} Bridge", "the {n} Tower"),
        (
            Fact(
                "year",
                ("{s} was completed in {a}.", "{s} was built in {a}.", "{s} was finished in {a}."),
                ("When was {s} completed?", "In what year was {s} built?"),
            ),
            Fact(
                "person",
                ("{s} was designed by {a}.", "the architect of {s} was {a}.", "{s} was planned by {a}."),
                ("Who designed {s}?", "Who was the architect of {s}?"),
            ),
            Fact(
                "material",
                ("{s} is made of {a}.", "{s} was made from {a}.", "{s} is a monument of {a}."),
                ("What is {s} made of?", "Which material was used for {s}?"),
            ),
            Fact(
                "metres",
                ("{s} is {a} high.", "{s} reaches a height of {a}.", "the height of {s} is {a}."),
                ("How high is {s}?", "What is the height of {s}?"),
            ),
            Fact(
                "place",
                ("{s} can be found in {a}.", "{s} was raised at {a}.", "{s} is the pride of {a}."),
                ("Where can {s} be found?", "Where was {s} raised?"),
            ),
        ),
    ),
    Kind(
        "thing",
        ("the ship {n}", "the vessel {n}"),
        (
            Fact(
                "date",
                ("{s} sailed in {a}.", "{s} left harbour in {a}.", "{s} put to sea in {a}."),
                ("When did {s} sail?", "When did {s} put to sea?"),
            ),
            Fact(
                "person",
                ("{s} was commanded by {a}.", "the captain of {s} was {a}.", "{s} was steered by {a}."),
                ("Who commanded {s}?", "Who was the captain of {s}?"),
            ),
            Fact(
                "goods",
                ("{s} carried {a}.", "the cargo of {s} was {a}.", "{s} was loaded with {a}."),
                ("What did {s} carry?", "What was the cargo of {s}?"),
            ),
            Fact(
                "place",
                ("{s} was bound for {a}.", "the port of {s} was {a}.", "{s} reached {a} safely."),
                ("Where was {s} bound?", "What was the port of {s}?", "Which port did {s} reach?"),
            ),
            Fact(
                "sailors",
                ("{s} had {a}.", "the crew of {s} was {a}.", "{s} took aboard {a}."),
                ("How many sailors did {s} have?", "How many sailors served on {s}?"),
            ),
        ),
    ),
)
