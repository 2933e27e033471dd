"""Documents, changes and conversations to examples, through the functions that render requests.

All of it is pure: what is drawn depends on the recipe's seed and the document's id alone.
"""

from openmercury.data.examples.changes import make_edit_examples
from openmercury.data.examples.conversation import make_chat_examples
from openmercury.data.examples.files import make_examples

__all__ = ["make_chat_examples", "make_edit_examples", "make_examples"]
