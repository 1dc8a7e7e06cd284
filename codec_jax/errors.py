"""The one exception whose message is meant for the person who typed the command."""


class UserError(ValueError):
    """Something given by the user cannot be used; the message is one sentence: what is wrong, where, and the mend."""


def require(fine: object, sentence: str) -> None:
    """Raises UserError with this sentence unless all is fine."""
    if not fine:
        raise UserError(sentence)
