"""``ovms-plugin run MODEL``: a conversation at the terminal."""

from __future__ import annotations

import contextlib
import shlex
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ovms_cli import output
from ovms_cli.conversation import OPTIONS, Stats, pieces
from ovms_cli.markdown import writer
from ovms_kernel.api.commands import BadRequest, OvmsError, Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prompt_toolkit import PromptSession

    from ovms_cli.asking import Services
    from ovms_cli.conversation import Conversation
    from ovms_cli.session import Session

HELP = """\
/model [NAME]          show or change the model
/system [TEXT]         show or set the system prompt; /system - removes it
/set [OPTION [VALUE]]  show or set an option: {options}
/image FILE            attach an image to the next question
/save FILE             write the conversation to a file
/load FILE             continue a saved conversation
/clear                 forget the conversation
/stats                 show or hide speed after each answer
/think                 show or hide the reasoning of models that think
/bye                   leave; so does Ctrl-D

\"\"\" begins and ends text of several lines. Ctrl-C stops an answer."""
QUOTES = '"""'


class Repl:
    """Reads questions and commands until the user leaves.

    :param kept: file of the questions of earlier conversations, for the arrow keys.
    """

    def __init__(
        self, session: Session, services: Services, conversation: Conversation, kept: Path, *, stats: bool = False
    ) -> None:
        self._session = session
        self._services = services
        self._conversation = conversation
        self._kept = kept
        self._stats = stats
        self._reasoning = True
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "model": self._model,
            "system": self._system,
            "set": self._set,
            "image": self._image,
            "save": self._save,
            "load": self._load,
            "clear": self._clear,
            "stats": self._switch_stats,
            "think": self._switch_reasoning,
            "help": self._help,
            "?": self._help,
        }

    async def run(self) -> None:
        """Talk until the user leaves."""
        prompt = self._prompt()
        output.say(f"{self._conversation.model or 'The default model'}: ask something; /help shows the commands.")
        while (text := await _read(prompt)) is not None:
            if not text.strip():
                continue
            word, _, rest = text.strip().partition(" ")
            if word in ("/bye", "/exit", "/quit"):
                return
            try:
                if word.startswith("/") and "\n" not in word:
                    await self._command(word[1:], rest.strip())
                else:
                    await self._ask(text)
            except OvmsError as error:
                output.say(error.message)

    async def _command(self, name: str, rest: str) -> None:
        command = self._commands.get(name)
        if command is None:
            raise BadRequest(f"There is no command /{name}; /help lists them.")
        await command(rest)

    async def _ask(self, text: str) -> None:
        """Ask a question and show its answer; Ctrl-C ends the answer and keeps what has arrived."""
        stats = Stats()
        shown = writer(reasoning=self._reasoning)
        try:
            with _until_interrupted(self._session) as interrupted, shown:
                request = Request(fields=self._conversation.ask(text), caller="cli")
                async with aclosing(pieces(self._services.stream("chat", request), stats)) as found:
                    async for piece in found:
                        shown.write(piece)
        except OvmsError:
            self._conversation.withdraw()
            raise
        if not shown.text and interrupted():
            self._conversation.withdraw()
        else:
            self._conversation.answered(shown.text)
        if interrupted():
            output.say("Interrupted.")
        elif self._stats:
            output.say(stats.line())

    def _prompt(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory

        self._kept.parent.mkdir(parents=True, exist_ok=True)
        # Questions are private: other users of the machine must not read them.
        self._kept.touch(mode=0o600)
        words = [f"/{each}" for each in (*self._commands, "bye") if each != "?"]
        completer = WordCompleter(words, sentence=True)
        return PromptSession(history=FileHistory(str(self._kept)), completer=completer, complete_while_typing=False)

    # -- the commands ----------------------------------------------------------------------------------------------

    async def _model(self, name: str) -> None:
        names = [each.id for each in await self._services.list_models() if each.model_type == "text_generation"]
        if not name:
            for each in names:
                print(f"{'*' if each == self._conversation.model else ' '} {each}")
        elif name in names:
            self._conversation.model = name
        else:
            raise BadRequest(f"{name} is not installed; there are {', '.join(names) or 'none'}.")

    async def _system(self, text: str) -> None:
        if text:
            self._conversation.system = "" if text == "-" else text
        print(self._conversation.system or "There is no system prompt.")

    async def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name:
            self._conversation.set(name, value.strip())
        for each in OPTIONS:
            print(f"{each:<18} {self._conversation.options.get(each, 'default')}")

    async def _image(self, rest: str) -> None:
        path = _path(rest, "/image FILE")
        await anyio.to_thread.run_sync(self._conversation.add_image, path)
        print(f"{path.name} goes with the next question.")

    async def _save(self, rest: str) -> None:
        path = _path(rest, "/save FILE")
        await anyio.to_thread.run_sync(self._conversation.save, path)
        print(f"Saved as {path}.")

    async def _load(self, rest: str) -> None:
        await anyio.to_thread.run_sync(self._conversation.load, _path(rest, "/load FILE"))
        print(f"{len(self._conversation.messages)} messages, {self._conversation.model or 'the default model'}.")

    async def _clear(self, _: str) -> None:
        self._conversation.clear()
        print("The conversation is empty.")

    async def _switch_stats(self, _: str) -> None:
        self._stats = not self._stats
        print(f"Speed is {'shown' if self._stats else 'hidden'}.")

    async def _switch_reasoning(self, _: str) -> None:
        self._reasoning = not self._reasoning
        print(f"Reasoning is {'shown' if self._reasoning else 'hidden'}.")

    async def _help(self, _: str) -> None:
        print(HELP.format(options=", ".join(OPTIONS)))


def _path(rest: str, usage: str) -> Path:
    """Return the file that a command names, also in quotes."""
    try:
        words = shlex.split(rest)
    except ValueError:
        words = [rest]
    if len(words) != 1:
        raise BadRequest(f"Name one file: {usage}.")
    return Path(words[0]).expanduser()


async def _read(prompt: PromptSession[str]) -> str | None:
    """Return what was typed; ``None`` if the user leaves."""
    text = await _line(prompt, "> ")
    if text is None or not text.lstrip().startswith(QUOTES):
        return text
    lines = [text.lstrip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        more = await _line(prompt, ". ")
        if more is None:
            return None
        lines.append(more)
    return "\n".join(lines).rstrip().removesuffix(QUOTES)


async def _line(prompt: PromptSession[str], sign: str) -> str | None:
    while True:
        try:
            # Its own handler of Ctrl-C ends the line and not the program.
            return await prompt.prompt_async(sign)
        except KeyboardInterrupt:
            output.say("Ctrl-D or /bye leaves.")
        except EOFError:
            return None


@contextlib.contextmanager
def _until_interrupted(session: Session) -> Iterator[Callable[[], bool]]:
    """Run the body until Ctrl-C, which then ends nothing else; gives a function that tells whether there was one."""
    with anyio.CancelScope() as scope:
        session.on_interrupt = scope.cancel
        try:
            yield lambda: scope.cancel_called
        finally:
            session.on_interrupt = None


async def ask_once(services: Services, conversation: Conversation, text: str, *, stats: bool) -> None:
    """Ask one question and show its answer."""
    measured = Stats()
    with writer(plain=conversation.schema is not None) as shown:
        request = Request(fields=conversation.ask(text), caller="cli")
        async with aclosing(pieces(services.stream("chat", request), measured)) as found:
            async for piece in found:
                shown.write(piece)
    if stats:
        output.say(measured.line())
