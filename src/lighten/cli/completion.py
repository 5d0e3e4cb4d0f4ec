"""Scripts that have bash, zsh and fish complete ``lighten``: steps, options, recipes and their keys, run folders.

They are plain shell and start no Python: recipes and runs are looked up where one stands, the rest is in them.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from lighten.cli.arguments import OF_A_RUN, SHELLS, STEPS, parser

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
            for path in recipes/*.yaml; do
                path="recipe=$(basename "$path" .yaml)"
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
    quantize)
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
            found=(recipes/*.yaml(N:t:r))
            compadd -- recipe=${^found}
        else
            compadd -S '' -- @KEYS@
        fi
        ;;
    @OF_RUNS@)
        found=(runs/*/*(N/))
        compadd -- $found || _files -/
        ;;
    quantize)
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
complete -c lighten -n '__fish_seen_subcommand_from @BY_RECIPE@' -a '(for file in recipes/*.yaml; echo recipe=(basename $file .yaml); end)'
complete -c lighten -n '__fish_seen_subcommand_from @BY_RECIPE@' -a '@KEYS@'
complete -c lighten -n '__fish_seen_subcommand_from @OF_RUNS@' -a '(for run in runs/*/*/; string trim -rc / $run; end)'
complete -c lighten -n '__fish_seen_subcommand_from quantize' -a '(for folder in runs/*/*/dense/ runs/*/*/student/; string trim -rc / $folder; end)'
complete -c lighten -n '__fish_seen_subcommand_from @OF_RUNS@ quantize' -a '(__fish_complete_directories)'
complete -c lighten -n '__fish_seen_subcommand_from completion' -a '@SHELLS@'
"""  # noqa: E501

BY_RECIPE = ("train", "plan")
OF_RUNS = (*OF_A_RUN, "compare", "push")


def script(shell: str) -> str:
    """Return the script for ``"bash"``, ``"zsh"`` or ``"fish"``, which the shell is to source."""
    between = " " if shell == "fish" else "|"
    filled = {
        "KEYS": " ".join(["recipe=", *keys()]),
        "SHELLS": " ".join(SHELLS),
        "BY_RECIPE": between.join(BY_RECIPE),
        "OF_RUNS": between.join(OF_RUNS),
        **{"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](),
    }
    text = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text.rstrip()


def options_of(step: str) -> dict[str, str]:
    """Return the long options of a step, and ``-m``, with their help."""
    return {
        option: action.help or ""
        for action in _actions(step)
        for option in action.option_strings
        if option.startswith("--") or option == "-m"
    }


def values_of(step: str) -> dict[str, tuple[str, ...]]:
    """Return what may follow an option of a step, where that is one of a few words."""
    from lighten.delivery.report.compare import COLUMNS
    from lighten.quantization.settings import POST_TRAINING_MODES, RANGES

    known: Mapping[str, tuple[str, ...]] = {
        "--sort": ("name", *(column.name for column in COLUMNS)),
        "--mode": POST_TRAINING_MODES,
        "--ranges": tuple(name for name in RANGES if name != "lsq"),
    }
    return {option: words for option, words in known.items() if option in options_of(step)}


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
        for step in STEPS for option, words in values_of(step).items()
    ]  # fmt: skip
    options = [f"    {step}) options='{' '.join(options_of(step))}' ;;" for step in STEPS]
    return {"STEPS": " ".join(STEPS), "VALUES": "\n".join(values), "OPTIONS": "\n".join(options)}


def _zsh() -> dict[str, str]:
    values = [
        f"    '{step} {option}') compadd -- {' '.join(words)}; return ;;"
        for step in STEPS for option, words in values_of(step).items()
    ]  # fmt: skip
    options = [f"        {step}) found=({_described(options_of(step))}) ;;" for step in STEPS]
    return {"STEPS": _described(STEPS), "VALUES": "\n".join(values), "OPTIONS": "\n".join(options)}


def _fish() -> dict[str, str]:
    begin = "complete -c lighten -n"
    steps = [f"{begin} __fish_use_subcommand -a {name} -d {_quoted(text)}" for name, text in STEPS.items()]
    options = []
    for step in STEPS:
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


def _actions(step: str) -> list[argparse.Action]:
    steps = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return list(steps.choices[step]._actions)
