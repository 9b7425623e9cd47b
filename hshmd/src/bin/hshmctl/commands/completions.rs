use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::Exit;
use crate::ui::Ui;

/// Prints the names of segments. It does not wait long: somebody has pressed a key.
const LIST: &str = "--timeout 1 list 2>/dev/null | sed -n '2,$s/ .*//p'";

/// Completes as the function before it, and names where a segment is expected.
const BASH: &str = r#"
_hshmctl_with_segments() {
    _hshmctl "$@"
    local at command= socket=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${COMP_WORDS[at]} in
        --socket) socket=(--socket "${COMP_WORDS[++at]}") ;;
        --timeout) ((++at)) ;;
        -*) ;;
        *)
            command=${COMP_WORDS[at]}
            break
            ;;
        esac
    done
    # Neither an option, nor the value of one.
    [[ $2 != -* && $3 != --@(socket|timeout|size|svg) ]] || return
    case $command in
    @COMMANDS@) COMPREPLY=($(compgen -W "$(hshmctl "${socket[@]}" @LIST@)" -- "$2")) ;;
    esac
}
complete -F _hshmctl_with_segments -o bashdefault -o default hshmctl
"#;

const ZSH: &str = r#"
(( $+functions[_hshmctl_segments] )) ||
_hshmctl_segments() {
    local socket=(${opt_args[--socket]:+--socket ${opt_args[--socket]}})
    local names=(${(f)"$(hshmctl $socket @LIST@)"})
    compadd -a names
}
"#;

const FISH: &str = r#"
complete -c hshmctl -n "__fish_hshmctl_using_subcommand @COMMANDS@" -f -a "(hshmctl @LIST@)"
"#;

pub(super) fn run(shell: Shell, ui: &mut Ui) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "hshmctl", &mut script);
    ui.text(with_segments(shell, String::from_utf8(script)?).as_bytes())?;
    Ok(Exit::Success)
}

/// The script, with names of segments where one is expected. Shells that have no such thing here keep theirs.
fn with_segments(shell: Shell, script: String) -> String {
    let own = |template: &str, between: &str, list: &str| {
        template.replace("@COMMANDS@", &commands().join(between)).replace("@LIST@", list)
    };
    match shell {
        Shell::Bash => script + &own(BASH, " | ", LIST),
        Shell::Fish => script + &own(FISH, " ", &LIST.replace('$', "\\$")),
        Shell::Zsh => {
            // What each command's own completion calls, before the last lines of the file call that.
            let tail = "\nif [ \"$funcstack[1]\"";
            let script = script.replace(tail, &(own(ZSH, "", LIST) + tail));
            let lines = script.lines().map(|line| {
                let is_name = line.starts_with("':name -- ") || line.starts_with("'::name -- ");
                if is_name {
                    line.replace(":_default'", ":_hshmctl_segments'")
                } else {
                    line.into()
                }
            });
            lines.collect::<Vec<_>>().join("\n") + "\n"
        }
        Shell::Elvish | Shell::PowerShell | _ => script,
    }
}

/// The commands that take the name of a segment that is there.
fn commands() -> Vec<String> {
    let takes_name = |command: &clap::Command| {
        command.get_positionals().any(|argument| argument.get_id() == "name")
            && command.get_name() != "create"
    };
    let hshmctl = Args::command();
    let commands = hshmctl.get_subcommands().filter(|command| takes_name(command));
    commands.map(|command| command.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_that_takes_a_segment_has_its_names_completed() {
        let commands = commands();
        assert_eq!(commands, ["inspect", "dump", "watch", "grow", "destroy", "check"]);
        let script = |shell| {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "hshmctl", &mut script);
            with_segments(shell, String::from_utf8(script).unwrap())
        };
        let zsh = script(Shell::Zsh);
        assert_eq!(zsh.matches(":_hshmctl_segments'").count(), commands.len(), "{zsh}");
        assert!(zsh.contains("\n_hshmctl_segments() {"), "{zsh}");
        assert!(script(Shell::Bash).contains("inspect | dump | watch | grow | destroy | check)"));
        assert!(script(Shell::Fish).contains("inspect dump watch grow destroy check\" -f"));
    }
}
