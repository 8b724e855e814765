//! `viewledger password`: makes what is kept of a password.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::serve::auth::passwords::new_verifier;

/// Make the verifier of a password, for CREATE ROLE ... PASSWORD '...' and for files of passwords.
///
/// Reads one line from standard input; on a terminal it asks twice, and does not show what is typed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger password
  openssl rand -base64 24 | tee /run/secrets/analyst | viewledger password")]
pub struct Args {}

pub fn run(_: Args) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdin().is_terminal();
    let password = if terminal { asked()? } else { line()? };
    ensure!(!password.is_empty(), "the password is empty");
    println!("{}", new_verifier(&password).reveal());
    Ok(ExitCode::SUCCESS)
}

fn asked() -> anyhow::Result<String> {
    let _hidden = Hidden::begin();
    let ask = |what: &str| {
        eprint!("{what}: ");
        std::io::stderr().flush()?;
        let line = line();
        eprintln!();
        line
    };
    let (first, second) = (ask("Password")?, ask("Again")?);
    ensure!(first == second, "they are not the same");
    Ok(first)
}

fn line() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the password from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// While it lives, the terminal does not show what is typed.
struct Hidden(Option<libc::termios>);

impl Hidden {
    fn begin() -> Self {
        // SAFETY: `tcgetattr` fills in the structure or says that it did not; `tcsetattr` only reads it.
        unsafe {
            let mut before = std::mem::zeroed::<libc::termios>();
            if libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) != 0 {
                return Self(None);
            }
            let mut silent = before;
            silent.c_lflag &= !libc::ECHO;
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const silent);
            Self(Some(before))
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: as above.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
        }
    }
}
