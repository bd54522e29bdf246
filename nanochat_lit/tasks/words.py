"""Common English words for the spelling tasks."""

WORDS = tuple(
    """
    about above across address after again against almost alone along already although always among amount animal
    answer apple arrange arrive article autumn balance banana basket battle beautiful because become bedroom before
    begin believe between bicycle birthday blanket bottle branch breakfast bridge bright brother building butter
    butterfly calendar camera candle captain carrot castle center chapter cheese cherry children chocolate circle
    classroom clothes coconut collect committee compare complete computer consider country courage cousin cucumber
    daughter december decide delicious different difficult dinner discover distance doctor dragon dream elephant
    embarrass engine enough evening example excellent exercise explain family favorite feather february finger
    flower forest forward friend garden general giraffe glasses grammar grandmother grass guitar happiness harbor
    heavy history holiday honey horizon hospital hundred hungry imagine important indeed insect interest island
    january jelly journey july jungle kangaroo keyboard kitchen kitten knowledge ladder language laughter leather
    lemon lesson letter library listen little machine market marvelous meadow measure medicine memory mirror
    mississippi moment monkey morning mountain mushroom music narrow nature necessary needle neighbor notebook
    november ocean october orange orchestra parallel parrot pattern peaceful pencil pepper perhaps picture pillow
    pineapple planet pleasant popular possible potato practice present problem promise puzzle quarter question
    rabbit rainbow raspberry recommend remember restaurant rhythm river rocket sandwich saturday school science
    season separate september shadow shoulder silver simple sister skeleton soldier spaghetti special spring
    squirrel station strawberry street strength success sudden summer sunday sweater swimming teacher telephone
    temperature thirteen thousand thunder together tomato tomorrow tongue travel treasure tuesday umbrella uncle
    university vegetable vehicle village violin volcano weather wednesday welcome whisper willow window winter
    wonderful yellow yesterday zebra
    """.split()  # noqa: SIM905 - a list literal would take a line a word
)
"""Unique words in alphabetical order."""
