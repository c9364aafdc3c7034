//! `berth login`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use berth::proto::berth::v1::CheckCredentialsRequest;
use berth::proto::runtime::v1::AuthConfig;
use clap::Args;

use crate::client::Client;
use crate::credentials::{self, Place};
use crate::failure::Answer;
use crate::output;
use crate::session::terminal::{self, Quiet};

/// Longest password.
const LONGEST: u64 = 64 << 10;

/// Options of `login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The registry, as in registry.example:5000
    #[arg(value_name = "REGISTRY", default_value = credentials::DEFAULT_REGISTRY)]
    registry: String,
    /// User name (else it is asked for)
    #[arg(short, long)]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

impl Login {
    /// Has the daemon ask the registry, and keeps what it took.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let registry = credentials::registry(&self.registry)?;
        let (username, password) = self.read(&registry).await?;
        let mut client = Client::connect(address).await?;
        let auth = AuthConfig {
            username: username.clone(),
            password: password.clone(),
            server_address: registry.clone(),
            ..AuthConfig::default()
        };
        let request = CheckCredentialsRequest { registry: registry.clone(), auth: Some(auth) };
        let checked = client.transfer.check_credentials(request).await.answer();
        checked.with_context(|| format!("logging in to {registry} as {username}"))?;
        match credentials::keep(&registry, &username, &password).await? {
            Place::File(path) => output::print_line(&format!(
                "logged in to {registry}; the password is kept in {}, not encrypted (see credsStore)",
                path.display()
            ))?,
            Place::Helper(name) => output::print_line(&format!(
                "logged in to {registry}; the password is kept by docker-credential-{name}"
            ))?,
        }
        Ok(0)
    }

    async fn read(&self, registry: &str) -> Result<(String, String)> {
        let terminal = io::stdin().is_terminal();
        let username = match &self.username {
            Some(username) => username.clone(),
            None if terminal && !self.password_stdin => ask(&format!("User name for {registry}: "))?,
            None => bail!("which user? name it with --username"),
        };
        if username.is_empty() || username.contains(':') {
            bail!("a user name is not empty and has no colon");
        }
        let password = if self.password_stdin {
            let mut text = String::new();
            io::stdin().take(LONGEST + 1).read_to_string(&mut text).context("reading the password")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        } else if terminal {
            secret().await?
        } else {
            bail!("which password? send it with --password-stdin, or run this in a terminal");
        };
        if password.is_empty() || password.len() as u64 > LONGEST {
            bail!("a password has 1 to {LONGEST} bytes");
        }
        Ok((username, password))
    }
}

/// The password. Whoever thinks better of it (Ctrl-C) has a terminal again that shows what is typed.
async fn secret() -> Result<String> {
    let quiet = Quiet::new()?;
    // Asked only once signals are listened for.
    let asked = async { tokio::task::spawn_blocking(|| ask("Password: ")).await? };
    let answer = terminal::unless_signalled(asked).await;
    drop(quiet);
    if answer.is_err() {
        // The question's line has no end yet.
        let _ = writeln!(io::stderr());
    }
    answer
}

fn ask(question: &str) -> Result<String> {
    let mut screen = io::stderr();
    screen.write_all(question.as_bytes())?;
    screen.flush()?;
    let mut line = String::new();
    io::stdin().lock().take(LONGEST + 1).read_line(&mut line).context("reading from the terminal")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
