"""Names, animals, objects and words of the small world."""

from __future__ import annotations


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a text (split at blanks by default), without line breaks."""
    return tuple(word.strip() for word in text.split(separator))


HE_NAMES = words(
    """Ben Tom Max Leo Sam Finn Hugo Otto Paul Jack Felix Oscar Noah Adam Luke Rob Dan Carl Emil Nils Pip Toby Milo Ivan
    Omar Ravi Kofi Hans Peter Simon"""
)
SHE_NAMES = words(
    """Anna Mia Lucy Ella Nora Ida Clara Lily Rosa Emma Zoe Ruby Vera Lena Tina Sara Jane Kate Alice Maya Hana Amina Nina
    Olga Dora Greta Mara Julia Sofie Wendy"""
)
NAMES = HE_NAMES + SHE_NAMES
PRONOUNS = dict.fromkeys(HE_NAMES, ("he", "him", "his")) | dict.fromkeys(SHE_NAMES, ("she", "her", "her"))

STORY_ANIMALS = words(
    """fox rabbit mouse bear cat dog hen duck frog owl hedgehog squirrel badger otter goat pony lamb turtle beaver deer
    crow goose mole donkey kitten puppy swan hare"""
)

# The words whose letters the world knows. Every one is spelled in the documents of every split (a word whose letters
# were never shown can't be spelled); questions about them are split by word and phrasing, or by word and letter.
WORDS = words(
    """apple arm baby bag ball banana barn basket bean bear bed bell berry bike bird blanket boat body bone book boot
    bottle bowl box boy branch bread breeze brick bridge brother brown bucket button butter cabbage cabin cake camel
    camp candle carpet carrot castle chair cheese cherry chicken child circle city class clock cloud coat coffee
    colour corn corner cotton cousin cow cradle crown cup dance daughter desk dinner doctor dog doll door dragon dream
    dress drum duck eagle ear earth egg elbow engine evening eye face family farm farmer father feather fence field
    finger fire fish flag flower forest fork frog fruit game garden gate giant giraffe girl glass glove goat gold
    goose grape grass green guitar hair hammer hand happy hat hen hill honey horse hotel house hungry ice island
    jacket jam jelly jewel juice jungle kettle key king kitchen kite kitten knee knife ladder lake lamp leaf lemon
    letter library lion lizard lunch machine magic mango map market meadow melon milk mirror money monkey moon morning
    mother mountain mouse music nail neck needle nest night noodle nose number nurse ocean office onion orange oven
    owl paint pan panda paper parrot party peach peanut pear pencil penguin pepper person piano picture pig pillow
    pilot planet plate pocket pony potato present prince puppet puppy purple queen rabbit radio rain rainbow red
    ribbon rice ring river road robot rocket roof room rose ruler sailor salad sand school scissors sea shadow sheep
    ship shirt shoe shop silver singer sister sky sleep snail snow soap sock soup spider spoon spring star station
    stone story strawberry street sugar summer sun sweater swing table tail teacher teapot tent thunder ticket tiger
    tomato tooth towel tower town toy train tree trumpet tulip turtle umbrella uncle valley village violin wagon wall
    water whale wheel whistle window winter wolf wood yellow zebra"""
)

# Things that can be counted and carried: singular and plural.
OBJECTS = tuple(
    (one, one + "s" if not one.endswith(("y", "h", "x")) else one[:-1] + "ies" if one.endswith("y") else one + "es")
    for one in words(
        """apple ball book coin stone egg shell pencil flower button card marble stamp cookie pear carrot candle ticket nut
        star"""
    )
)
