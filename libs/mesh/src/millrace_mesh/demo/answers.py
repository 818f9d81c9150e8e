"""The same question to the base model and to the tuned one, through the ``openai`` package."""

from dataclasses import dataclass

from millrace_mesh.demo.session import Session

_SYSTEM_PROMPT = "Complete the Python function."


@dataclass(frozen=True)
class Answers:
    """What each of them said."""

    question: str
    base: str
    tuned: str
    tuned_model: str


def ask(session: Session, question: str, tuned_model: str) -> Answers:
    """The base model, which never saw a conversation, goes on from the text; the other chats."""
    base = session.client.completions.create(
        model=session.plan.model,
        prompt=f"{question}\n",
        max_tokens=session.plan.answer_tokens,
        temperature=0,
    )
    tuned = session.client.chat.completions.create(
        model=tuned_model,
        messages=[
            {"role": "system", "content": _SYSTEM_PROMPT},
            {"role": "user", "content": question},
        ],
        max_tokens=session.plan.answer_tokens,
        temperature=0,
    )
    answer = tuned.choices[0].message.content or ""
    return Answers(question, base.choices[0].text, answer, tuned_model)
