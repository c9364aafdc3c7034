//! Takes secrets out of what goes into an archive that people send to others.
//!
//! What is a secret can't be known for sure. So whole classes go: values of every environment variable, keys and certificates'
//! keys in any text, user and password in addresses, headers that authorise, and whatever stands under a name that sounds like a
//! secret. Names, ids, paths, images and commands stay: without them the archive would be of no use.

use serde_json::Value;

const GONE: &str = "(redacted)";
/// Parts of names whose values go.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "api_key",
    "api-key",
    "privatekey",
    "private_key",
    "private-key",
    "identitytoken",
];

/// Whether what is called that is a secret. `tokenPath` and the like name a file, not what is in it.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "auth"
        || (NAMES.iter().any(|part| name.contains(part))
            && !name.ends_with("path")
            && !name.ends_with("file"))
}

/// An entry of the archive without secrets: as JSON if it is that, else as lines of text.
pub(super) fn redacted(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            clean(&mut value);
            serde_json::to_string_pretty(&value).unwrap_or_default()
        }
        _ => lines(text),
    }
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    // CRI: a list of keys and values. OCI and image configurations: a list of KEY=VALUE.
                    "env" | "envs" | "Env" => environment(value),
                    // kubectl apply keeps the whole object there, environment and all.
                    name if is_secret(name) || name.contains("last-applied-configuration") => {
                        if !value.is_null() {
                            *value = Value::String(GONE.to_owned());
                        }
                    }
                    _ => clean(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::String(text) => *text = lines(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn environment(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(environment),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name != "key" && name != "name" {
                    *value = Value::String(GONE.to_owned());
                }
            }
        }
        Value::String(text) => *text = format!("{}={GONE}", text.split('=').next().unwrap_or_default()),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Text, line by line. Keys in PEM are gone as a whole.
fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            inside = !line.contains("-----END");
            out.push_str(GONE);
            out.push('\n');
        } else if inside {
            inside = !line.contains("-----END");
        } else {
            out.push_str(&words(line));
        }
    }
    if text.ends_with('\n') { out } else { out.trim_end_matches('\n').to_owned() }
}

/// What parts words; quotes do as well.
const BLANKS: [char; 6] = [' ', '\t', '\n', ',', '"', '\''];

/// One line: `name=secret`, `name: secret`, `"name": "secret"`, `--name secret`, `scheme://user:password@host`, `Bearer …`.
fn words(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    // Whether the next word is a secret; one that says how it is written (`Authorization: Basic …`) is not it yet.
    let mut announced = false;
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(BLANKS).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let blank = after.chars().next().map_or(0, char::len_utf8);
        let bare = word.trim_matches(|char: char| !char.is_ascii_alphanumeric());
        let scheme = matches!(bare.to_ascii_lowercase().as_str(), "bearer" | "basic");
        if bare.is_empty() {
            out.push_str(word);
        } else if scheme {
            announced = true;
            out.push_str(word);
        } else if announced {
            announced = false;
            out.push_str(GONE);
        } else if let Some((name, value)) = word.split_once('=').filter(|(name, _)| is_secret(name)) {
            out.push_str(name);
            out.push('=');
            announced = value.is_empty();
            if !announced {
                out.push_str(GONE);
            }
        } else {
            let told = word.ends_with([':', '=']) || word.starts_with("--");
            let follows = after.trim_start_matches(['"', '\'', ' ', '\t']).starts_with([':', '=']);
            announced = is_secret(bare) && (told || follows);
            out.push_str(&address(word));
        }
        out.push_str(&after[..blank]);
        rest = &after[blank..];
    }
    out
}

/// An address without its user and password.
fn address(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://{GONE}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_are_emptied() {
        let text = r#"{"config":{"envs":[{"key":"PGUSER","value":"hunter2"}],"image":"busybox"},
            "spec":{"process":{"env":["PATH=/bin","PGPASS=hunter2"],"args":["sh"]}}}"#;
        let clean = redacted(text);
        assert!(!clean.contains("hunter2") && !clean.contains("/bin"), "{clean}");
        for kept in ["PGUSER", "PGPASS", "busybox", "sh"] {
            assert!(clean.contains(kept), "{kept} in {clean}");
        }
    }

    #[test]
    fn names_that_sound_like_a_secret_are_emptied() {
        let clean = redacted(
            r#"{"password":"hunter2","auth":{"identity_token":"hunter2"},"tokenPath":"/kept","n":null}"#,
        );
        assert!(!clean.contains("hunter2") && clean.contains("/kept"), "{clean}");
        let annotation =
            r#"{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"a\":\"hunter2\"}"}}"#;
        assert!(!redacted(annotation).contains("hunter2"));
    }

    #[test]
    fn text_loses_keys_addresses_and_headers() {
        for line in [
            "pulling https://bob:hunter2@registry/x failed",
            "Authorization: Bearer hunter2",
            "authorization: Basic hunter2",
            "--password hunter2",
            "--password=hunter2 x",
            "registry.token = \"hunter2\"",
            "{\"password\": \"hunter2\"} trailing",
            "PASSWORD=hunter2",
            "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\nkept",
            "-----BEGIN EC PRIVATE KEY-----\nhunter2",
        ] {
            let clean = redacted(line);
            assert!(!clean.contains("hunter2"), "{line:?} became {clean:?}");
        }
        assert_eq!(redacted("GET https://registry/v2/ took 3 ms\n"), "GET https://registry/v2/ took 3 ms\n");
        assert!(redacted("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\nkept").contains("kept"));
        let kept = "streaming.tls.key = \"/etc/berth/key.pem\"";
        assert_eq!(redacted(kept), kept, "a path is no secret");
    }
}
