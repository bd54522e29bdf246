"""tiny_world: an endless, seeded corpus written by our own grammar, for models that train in minutes on a CPU.

Stories, facts, sums, spellings and conversations about one small world and about nanochat itself. Everything follows
from a split name and a seed; train, validation and test never share an item (see `splits`).
"""

from nanochat_lit.data.tiny_world.corpus import documents
from nanochat_lit.data.tiny_world.dialogues import conversations
from nanochat_lit.data.tiny_world.exam import examination
from nanochat_lit.data.tiny_world.harder_arithmetic import problems

__all__ = ["conversations", "documents", "examination", "problems"]
