"""Rendering of messages as token ids, for a conversation that only grows.

The chat template is rendered with markers in place of the contents. The text around the markers is trusted and may
hold control tokens. The contents that replace the markers (observations, dataset fields) are data, which is encoded
without any added or special token, even if it spells one. Sampled ids are never decoded and encoded again.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase


_MARKER = "XzContentqZ{}Zq"


class ChatRenderer:
    """Renderer of prompts, and of the text between turns, with the tokenizer's chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer with a chat template.
        eos_token_ids (`list[int]`):
            Ids that end a turn when the policy samples them.
        chat_template (`str`, *optional*):
            Template to use in place of the tokenizer's own.
        chat_template_kwargs (`dict`, *optional*):
            Extra arguments of the template, such as `enable_thinking`.

    Raises:
        ValueError: the tokenizer has no chat template, the template has no generation prompt, it drops a message's
            content, or it rewrites earlier turns when a message is added.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: list[int],
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        if not (chat_template or tokenizer.chat_template):
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, which a multi-turn rollout needs. "
                "Set `tokenizer.chat_template`, or start from an instruct model."
            )
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._chat_template = chat_template
        self._template_kwargs = chat_template_kwargs or {}
        added = {i for token, i in tokenizer.get_added_vocab().items() if token.replace("\u2581", " ").strip()}
        self._control_ids = frozenset(added) | frozenset(tokenizer.all_special_ids)  # added runs of spaces are text
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = frozenset(special) | frozenset(tokenizer.all_special_ids)
        self._fill_cached = lru_cache(maxsize=4096)(self._fill)
        self._glue_cached = lru_cache(maxsize=64)(self._glue)
        probe = [{"role": "user", "content": "a"}]
        if self._render(probe, True, None) == self._render(probe, False, None):
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} ignores `add_generation_prompt`: it cannot open an "
                "assistant turn. Use a template with a generation prompt."
            )
        self._glue("user", 1)

    def prompt_ids(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> list[int]:
        """Ids of a conversation up to and including the generation prompt.

        Args:
            messages: list of `{"role", "content"}` with text contents.
            tools: functions or JSON schemas that the template lists, as in `apply_chat_template`.

        Returns:
            Token ids; none of the ids that come from a content is an added or special token.

        Raises:
            ValueError: another field of a message, which the template writes unchanged, holds a control token.
        """
        contents: list[str] = []
        marked = []
        for message in messages:
            self._check_fields(message)
            if message.get("content"):  # a tool call may have none
                contents.append(content_text(message["content"]))
                message = {**message, "content": _MARKER.format(len(contents) - 1)}
            marked.append(message)
        return list(self._fill_cached(self._render(marked, True, tools), tuple(contents)))

    def observation_ids(self, contents: list[str], ended: bool, role: str = "user") -> list[int]:
        """Ids between a sampled action and the next one: end of turn, the messages, generation prompt.

        Args:
            contents: texts of the messages to add, one message each.
            ended: whether the sampled action already ends with an end-of-turn token, which is then left out.
            role: role of the added messages, `"user"` or `"tool"`.
        """
        ids = list(self._fill_cached(self._glue_cached(role, len(contents)), tuple(contents)))
        if ended and ids and ids[0] in self._eos_token_ids:
            return ids[1:]
        return ids

    def echo_ids(self, ids: list[int], ended: bool) -> list[int]:
        """Ids of an earlier action for a prompt that repeats it: the sampled ids without special tokens.

        Args:
            ids: the sampled ids.
            ended: whether the last id ends the turn; it is kept.
        """
        end = len(ids) - 1 if ended else len(ids)
        return [i for i in ids[:end] if i not in self._special_ids] + ids[end:]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of sampled ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def encode_data(self, text: str) -> list[int]:
        """Encodes untrusted text. The result never holds the id of an added or special token."""
        return list(self._encode_data(_valid(text)))

    def _encode_data(self, text: str) -> tuple[int, ...]:
        ids = self._encode(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        if len(text) == 1:  # a single character that is a control token
            return tuple(i for i in ids if i not in self._control_ids)
        middle = len(text) // 2  # the two halves of a control token are ordinary text
        return self._encode_data(text[:middle]) + self._encode_data(text[middle:])

    def _check_fields(self, message: dict[str, Any]) -> None:
        for name, value in message.items():
            if name == "content" or value in ("system", "user", "assistant", "tool"):
                continue
            if not self._control_ids.isdisjoint(self._encode(_valid("\n".join(_texts(value))))):
                raise ValueError(
                    f"The field `{name}` of a message of the prompt holds a control token: {str(value)[:80]!r}. Only "
                    "contents may hold any text."
                )

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self._chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self._template_kwargs,
        )

    def _glue(self, role: str, count: int) -> str:
        """Text that the template puts after an assistant's content when messages follow, with markers in them."""
        answer = _MARKER.format("A")
        added = [{"role": role, "content": _MARKER.format(i)} for i in range(count)]
        reply: dict[str, Any] = {"role": "assistant", "content": answer}
        if role == "tool":
            added = [{**message, "name": "tool"} for message in added]
            call = {"type": "function", "function": {"name": "tool", "arguments": {}}}
            last = {"role": "assistant", "content": "", "tool_calls": [call]}
            before = self._render([{"role": "user", "content": "a"}, last], False, None)
            after = self._render([{"role": "user", "content": "a"}, last, *added], True, None)
            # The text starts at the end-of-turn token that closes the tool call.
            ends = [before.rfind(token) for token in self._tokenizer.convert_ids_to_tokens(list(self._eos_token_ids))]
            start = max(ends)
            if start < 0 or not after.startswith(before[:start]):
                raise ValueError(
                    f"The chat template of {self._tokenizer.name_or_path!r} cannot add tool results to a conversation "
                    "without rewriting it. Use a prefix-preserving template (`trl.get_training_chat_template`)."
                )
            return after[start:]
        text = self._render([{"role": "user", "content": "a"}, reply, *added], True, None)
        if text.count(answer) != 1 or any(text.count(message["content"]) != 1 for message in added):
            raise ValueError(
                f"The chat template of {self._tokenizer.name_or_path!r} drops or repeats the content of a {role!r} "
                "message, so observations cannot be shown. Use a template that renders every turn once."
            )
        return text[text.index(answer) + len(answer) :]

    def _fill(self, text: str, contents: tuple[str, ...]) -> tuple[int, ...]:
        """Ids of a rendered text with its markers replaced.

        The whole text is encoded at once, as `apply_chat_template` does, if the result holds exactly the template's
        control tokens, in their order. Otherwise a content spells some, and every piece is encoded separately.
        """
        pieces = self._pieces(text, contents)
        contents = tuple(_valid(content) for content in contents)
        whole = "".join(itertools.chain(*zip(pieces, (*contents, ""), strict=True)))
        ids = self._encode(whole)
        apart = [self._encode(piece) for piece in pieces]
        if self._controls(ids) == [i for piece in apart for i in self._controls(piece)]:
            return ids
        joined = apart[0]
        for content, piece in zip(contents, apart[1:], strict=True):
            joined += self._encode_data(content) + piece
        return joined

    def _pieces(self, text: str, contents: tuple[str, ...]) -> list[str]:
        """Splits a rendered text at its markers: one piece more than there are contents."""
        pieces = []
        for i, content in enumerate(contents):
            piece, found, text = text.partition(_MARKER.format(i))
            if not found:
                raise ValueError(
                    f"The chat template of {self._tokenizer.name_or_path!r} drops the content of message {i}: "
                    f"{content[:80]!r}."
                )
            pieces.append(piece)
        pieces.append(text)
        if any(_MARKER.format(i) in piece for i in range(len(contents)) for piece in pieces):
            raise ValueError(
                f"The chat template of {self._tokenizer.name_or_path!r} repeats the content of a message."
            )
        return pieces

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _controls(self, ids: tuple[int, ...]) -> list[int]:
        return [i for i in ids if i in self._control_ids]


def _texts(value: Any) -> list[str]:
    """All strings in a nested value."""
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _valid(text: str) -> str:
    """The text with lone surrogates, which no tokenizer accepts, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def content_text(content: str | list[dict[str, Any]]) -> str:
    """Text of a message's content, given as a string or as a list of text parts.

    Raises:
        ValueError: a part is not text.
    """
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise ValueError("Only text contents are supported: found a message part that is not of type 'text'.")
    return "".join(part["text"] for part in content)
