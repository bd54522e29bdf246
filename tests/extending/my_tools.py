"""Functions that answers may call, and a reward."""


def degrees(city: str) -> int:
    """Temperature in a city, in degrees Celsius."""
    return {"Rome": 31, "Oslo": 4}[city]


def calls_pay(conversation: dict, answer) -> float:
    """1 for a right answer, and a tenth for each call."""
    return float(answer.is_right) + 0.1 * len(answer.tool_calls)
