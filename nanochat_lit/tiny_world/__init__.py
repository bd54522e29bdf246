"""tiny_world: an endless, seeded corpus written by our own grammar, for models that train in minutes on a CPU.

Stories, facts, sums, spellings and conversations about one small world and about nanochat itself. Everything follows
from a split name and a seed; train, validation and test never share an item (see `splits`).

The words are data: one file of templates/ per category. A file with `relations` or `intents` is a category by itself:
add it and it is asked in conversations, examined and, with statements, told in documents. The others have a module
that makes their questions.
"""

from nanochat_lit.tiny_world.corpus import documents, held_out_items
from nanochat_lit.tiny_world.dialogues import conversations
from nanochat_lit.tiny_world.harder_arithmetic import problems
from nanochat_lit.tiny_world.preferences import preferences

__all__ = ["conversations", "documents", "held_out_items", "preferences", "problems"]
