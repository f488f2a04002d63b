"""Messages that list problems, taken apart again."""


def lines_of(message: str) -> list[str]:
    """The headline and each problem indented, also where one problem shares its line."""
    if "\n" in message:
        return message.splitlines()
    head, colon, problem = message.partition(": ")
    return [f"{head}:", f"  {problem}"] if colon else [message]
