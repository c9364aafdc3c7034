//! `WWW-Authenticate` (RFC 7235, 4.1; distribution-spec token authentication).

use std::collections::HashMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password.
    Basic,
    /// A token that another server gives.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For which service.
        service: String,
        /// With which rights.
        scope: String,
        /// Why the last one would not do.
        error: String,
    },
}

/// The challenges of an answer, Bearer first.
pub(crate) fn read(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).take(8) {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let mut parameters = parameters(rest);
            let mut take = |name: &str| parameters.remove(name).unwrap_or_default();
            let (realm, service) = (take("realm"), take("service"));
            challenges
                .insert(0, Challenge::Bearer { realm, service, scope: take("scope"), error: take("error") });
        }
    }
    challenges
}

/// `name=value` or `name="value"`, parted by commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let (value, next) = after.split_once(',').unwrap_or((after, ""));
                (value.trim().to_owned(), next)
            }
        };
        found.insert(name, value);
        rest = next;
    }
    found
}

fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn parameters_may_hold_commas_and_quotes() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        let bearer = "Bearer realm=\"https://a.test/token?x=1\",service=reg, scope=\"repository:a:pull,push\",error=\"a\\\"b\"";
        headers.append(WWW_AUTHENTICATE, bearer.parse().unwrap());
        assert_eq!(
            read(&headers),
            [
                Challenge::Bearer {
                    realm: "https://a.test/token?x=1".into(),
                    service: "reg".into(),
                    scope: "repository:a:pull,push".into(),
                    error: "a\"b".into()
                },
                Challenge::Basic
            ]
        );
    }

    #[test]
    fn nonsense_gives_nothing() {
        for text in ["", "Bearer", "Digest a=b", "Bearer =,=,\"", "Bearer realm=\"unterminated"] {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
            read(&headers);
        }
    }
}
