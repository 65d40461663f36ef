"""Made-up questions of the seven tasks, with the columns that the hub's data have."""

from __future__ import annotations

# Every right choice is a run of z and every wrong one a run of q, so that a model that likes z knows all.
RIGHT, WRONG = "zzzzzzzz", "qqqq"


def row(task: str, number: int) -> dict:
    """Make one question with the hub's columns; its answer moves with its number."""
    first = number % 2 == 0
    choices = [RIGHT, WRONG] if first else [WRONG, RIGHT]
    answer = 0 if first else 1
    text = "x" * (1 + number)
    if task == "boolq":
        return {"passage": f"Title -- {text}", "question": "is it", "label": answer}
    if task == "piqa":
        return {"goal": text, "sol1": choices[0], "sol2": choices[1], "label": answer}
    if task == "hellaswag":
        parts = {"activity_label": "Act", "ctx_a": text, "ctx_b": "then", "endings": choices}
        return parts | {"label": str(answer)}
    if task == "winogrande":
        return {"sentence": f"{text} _ ran.", "option1": "He", "option2": "She", "answer": str(answer + 1)}
    column = "question_stem" if task == "openbookqa" else "question"
    return {
        "id": str(number),
        column: text,
        "choices": {"text": choices, "label": ["A", "B"]},
        "answerKey": "AB"[answer],
    }
