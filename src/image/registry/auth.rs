//! Answering challenges, with a password or with a token that credentials buy.

use std::time::Duration;

use http::HeaderValue;
use reqwest::Client;

use super::challenge::Challenge;
use super::credentials::{Secret, basic, bearer};
use super::{Error, token};

/// Answers a challenge. `None` when there is nothing to answer it with.
pub(crate) async fn answer(
    client: &Client,
    challenges: &[Challenge],
    secret: &Secret,
    default_scope: &str,
    timeout: Duration,
) -> Result<Option<HeaderValue>, Error> {
    for challenge in challenges {
        match (challenge, secret) {
            (Challenge::Basic, Secret::Password(username, password)) => {
                return basic(username, password).map(Some);
            }
            // A ready token that was refused can't be bettered.
            (Challenge::Bearer { .. }, Secret::Bearer(_)) => return Ok(None),
            (Challenge::Bearer { realm, service, scope, .. }, _) => {
                let scope = wanted(scope, default_scope);
                let question = token::Question { client, realm, service, scope: &scope, secret, timeout };
                let token = question.fetch().await?;
                return bearer(&token).map(Some);
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The scopes to ask for. Who pushes asks for that from the beginning: the registry's first challenge, to a question, would
/// give a token for reading only.
fn wanted(told: &str, ours: &str) -> String {
    if told.is_empty() {
        ours.to_owned()
    } else if ours.ends_with("push") && !told.split(' ').any(|one| one == ours) {
        format!("{told} {ours}")
    } else {
        told.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pushes_asks_for_it_at_once() {
        let (pull, push) = ("repository:a:pull", "repository:a:pull,push");
        assert_eq!(wanted("", pull), pull);
        assert_eq!(wanted(pull, push), format!("{pull} {push}"));
        assert_eq!(wanted(push, push), push);
        assert_eq!(wanted("repository:b:pull", pull), "repository:b:pull");
        assert_eq!(wanted("registry:catalog:*", ""), "registry:catalog:*");
    }
}
