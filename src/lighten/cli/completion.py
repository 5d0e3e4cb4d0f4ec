"""Scripts that have bash, zsh and fish complete ``lighten``: steps, options, recipes and their keys, run folders.

They are plain shell and start no Python: one's own recipes and runs are looked up where one stands, the rest is in
them.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from lighten.cli.arguments import add_command
from lighten.cli.main import COMMANDS, parser
from lighten.utils.shipped import shipped

_BASH = r"""# lighten: completion for bash
_lighten() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$' \t\n' current before step options="" path
    local -a words
    read -ra words <<< "$line"
    current="${line##*[[:space:]]}"
    local count=${#words[@]}
    [[ -n $current ]] && count=$((count - 1))
    step="${words[1]}"
    before="${words[count - 1]}"
    COMPREPLY=()
    if ((count == 1)); then
        COMPREPLY=($(compgen -W "@STEPS@" -- "$current"))
        return
    fi
    case "$step $before" in
@VALUES@
    esac
    case $step in
@OPTIONS@
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
        return
    fi
    case $step in
    @BY_RECIPE@)
        if [[ $current == recipe=* ]]; then
            for path in @RECIPES@ recipes/*.yaml; do
                path="recipe=$(basename "$path" .yaml)"
                [[ " ${COMPREPLY[*]} " == *" $path "* ]] && continue
                [[ $path == "$current"* && $path != *"*" ]] && COMPREPLY+=("$path")
            done
        else
            COMPREPLY=($(compgen -W "@KEYS@" -- "$current"))
            compopt -o nospace 2> /dev/null
        fi
        if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
            COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*=}"}"}")
        fi
        ;;
    @OF_RUNS@)
        for path in runs/*/*/; do
            [[ -d $path && $path == "$current"* ]] && COMPREPLY+=("$(printf %q "${path%/}")")
        done
        ;;
    quantize|compress)
        for path in runs/*/*/{dense,student}/; do
            [[ -d $path && $path == "$current"* ]] && COMPREPLY+=("$(printf %q "${path%/}")")
        done
        ;;
    completion) COMPREPLY=($(compgen -W "@SHELLS@" -- "$current")) ;;
    esac
}
complete -o default -F _lighten lighten
"""

_ZSH = r"""#compdef lighten
# lighten: completion for zsh
_lighten() {
    local step=${words[2]}
    local -a found
    if ((CURRENT == 2)); then
        found=(@STEPS@)
        _describe step found
        return
    fi
    case "$step ${words[CURRENT - 1]}" in
@VALUES@
    esac
    if [[ $PREFIX == -* ]]; then
        case $step in
@OPTIONS@
        esac
        _describe option found
        return
    fi
    case $step in
    @BY_RECIPE@)
        if [[ $PREFIX == recipe=* ]]; then
            typeset -U found=(@RECIPES@ recipes/*.yaml(N:t:r))
            compadd -- recipe=${^found}
        else
            compadd -S '' -- @KEYS@
        fi
        ;;
    @OF_RUNS@)
        found=(runs/*/*(N/))
        compadd -- $found || _files -/
        ;;
    quantize|compress)
        found=(runs/*/*/{dense,student}(N/))
        compadd -- $found || _files -/
        ;;
    completion) compadd -- @SHELLS@ ;;
    *) _files ;;
    esac
}
if [[ ${funcstack[1]} == _lighten ]]; then
    _lighten "$@"
else
    (($+functions[compdef])) || { autoload -Uz compinit && compinit; }
    compdef _lighten lighten
fi
"""

_FISH = r"""# lighten: completion for fish
complete -c lighten -f
@STEPS@
@OPTIONS@
complete -c lighten -n '__fish_seen_subcommand_from @BY_RECIPE@' -a '(for file in @RECIPES@ recipes/*.yaml; echo recipe=(basename $file .yaml); end)'
complete -c lighten -n '__fish_seen_subcommand_from @BY_RECIPE@' -a '@KEYS@'
complete -c lighten -n '__fish_seen_subcommand_from @OF_RUNS@' -a '(for run in runs/*/*/; string trim -rc / $run; end)'
complete -c lighten -n '__fish_seen_subcommand_from quantize compress' -a '(for folder in runs/*/*/dense/ runs/*/*/student/; string trim -rc / $folder; end)'
complete -c lighten -n '__fish_seen_subcommand_from @OF_RUNS@ quantize compress' -a '(__fish_complete_directories)'
complete -c lighten -n '__fish_seen_subcommand_from completion' -a '@SHELLS@'
"""  # noqa: E501

SHELLS = ("bash", "zsh", "fish")


def add_parser(commands: Any) -> None:
    """Add the command."""
    completion = add_command(
        commands, "completion", "print the shell completion script", _completion,
        more="for steps, options, recipes and run folders, also in zsh and fish", example="bash >> ~/.bashrc",
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(arguments: argparse.Namespace) -> None:
    print(script(arguments.shell))


def script(shell: str) -> str:
    """Return the script for ``"bash"``, ``"zsh"`` or ``"fish"``, which the shell is to source."""
    between = " " if shell == "fish" else "|"
    filled = {
        "KEYS": " ".join(["recipe=", *keys()]),
        "SHELLS": " ".join(SHELLS),
        "RECIPES": " ".join(recipe_names()),
        "BY_RECIPE": between.join(_taking("recipe")),
        "OF_RUNS": between.join(_taking("run", "runs")),
        **{"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](),
    }
    text = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text.rstrip()


def options_of(step: str) -> dict[str, str]:
    """Return the long options of a step, and ``-m``, with their help."""
    return {
        option: (action.help or "").replace(argparse.SUPPRESS, "")
        for action in _actions(step)
        for option in action.option_strings
        if option.startswith("--") or option == "-m"
    }


def values_of(step: str) -> dict[str, tuple[str, ...]]:
    """Return what may follow an option of a step, where that is one of a few words."""
    return {action.option_strings[-1]: tuple(action.words()) for action in _actions(step) if hasattr(action, "words")}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with lighten."""
    return sorted(path.stem for path in shipped("recipes").glob("*.yaml"))


def keys(node: type | None = None, prefix: str = "") -> Iterator[str]:
    """Yield the keys of recipes, dotted, each with the ``=`` that follows."""
    from lighten.recipe.schema import Recipe

    node = Recipe if node is None else node
    kinds = get_type_hints(node)
    for field in fields(node):
        kind: Any = kinds[field.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from keys(kind, f"{prefix}{field.name}.")
        elif prefix or field.name != "name":
            yield f"{prefix}{field.name}="


def _bash() -> dict[str, str]:
    values = [
        f"    '{step} {option}') COMPREPLY=($(compgen -W '{' '.join(words)}' -- \"$current\")); return ;;"
        for step in COMMANDS for option, words in values_of(step).items()
    ]  # fmt: skip
    options = [f"    {step}) options='{' '.join(options_of(step))}' ;;" for step in COMMANDS]
    return {"STEPS": " ".join(COMMANDS), "VALUES": "\n".join(values), "OPTIONS": "\n".join(options)}


def _zsh() -> dict[str, str]:
    values = [
        f"    '{step} {option}') compadd -- {' '.join(words)}; return ;;"
        for step in COMMANDS for option, words in values_of(step).items()
    ]  # fmt: skip
    options = [f"        {step}) found=({_described(options_of(step))}) ;;" for step in COMMANDS]
    return {"STEPS": _described(_summaries()), "VALUES": "\n".join(values), "OPTIONS": "\n".join(options)}


def _fish() -> dict[str, str]:
    begin = "complete -c lighten -n"
    steps = [f"{begin} __fish_use_subcommand -a {name} -d {_quoted(text)}" for name, text in _summaries().items()]
    options = []
    for step in COMMANDS:
        values = values_of(step)
        for option, text in options_of(step).items():
            name = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            words = " -r -F" if option == "--out" else ""
            words = f" -x -a '{' '.join(values[option])}'" if option in values else words
            seen = f"'__fish_seen_subcommand_from {step}'"
            options.append(f"{begin} {seen} {name}{words} -d {_quoted(text)}")
    return {"STEPS": "\n".join(steps), "OPTIONS": "\n".join(options)}


def _described(words: Mapping[str, str]) -> str:
    return " ".join(_quoted(f"{name}:{text}") for name, text in words.items())


def _quoted(text: str) -> str:
    """Return text in single quotes, without those of its own: shells disagree on how to write them."""
    return "'" + text.replace("'", "").replace("\\", "") + "'"


def _taking(*arguments: str) -> list[str]:
    """Return the steps that take one of these arguments."""
    return [step for step in COMMANDS if any(action.dest in arguments for action in _actions(step))]


def _actions(step: str) -> list[argparse.Action]:
    return list(_commands().choices[step]._actions)


def _summaries() -> dict[str, str]:
    return {str(action.metavar or action.dest): action.help or "" for action in _commands()._choices_actions}


def _commands() -> Any:
    actions = parser()._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction))
