"""The one error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """A mistake that the user can fix; the command line shows its message without a traceback.

    The message is one or two lines and names the value, the limit and the fix.
    """
