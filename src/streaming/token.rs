//! Requests that wait for their client: each under a token that can be used once, within a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;

use super::Error;

/// How long a token is good for.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Tokens at once.
const WAITING_MAX: usize = 1000;
/// Bytes of randomness in a token.
const LENGTH: usize = 32;

/// Requests by token.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (T, Instant)>>,
    life: Duration,
}

impl<T> Tokens<T> {
    /// An empty set, of tokens good for `life`.
    pub(super) fn new(life: Duration) -> Self {
        Self { waiting: Mutex::default(), life }
    }

    /// Keeps a request; returns its token.
    pub(super) fn insert(&self, request: T) -> Result<String, Error> {
        let mut bytes = [0u8; LENGTH];
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        // What nobody came for holds a whole request each.
        waiting.retain(|_, (_, end)| *end > now);
        if waiting.len() >= WAITING_MAX {
            return Err(Error::TooManyWaiting(WAITING_MAX));
        }
        waiting.insert(token.clone(), (request, now + self.life));
        Ok(token)
    }

    /// The request of a token, which is then used up.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let (request, end) = self.waiting.lock().remove(token)?;
        (end > Instant::now()).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let tokens = Tokens::new(SHORT);
        let (a, b) = (tokens.insert('a').unwrap(), tokens.insert('b').unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 43);
        assert_eq!(tokens.take(&a), Some('a'));
        assert_eq!(tokens.take(&a), None);
        std::thread::sleep(SHORT);
        assert_eq!(tokens.take(&b), None);
    }

    #[test]
    fn what_nobody_came_for_is_not_kept() {
        let tokens = Tokens::new(SHORT);
        tokens.insert('a').unwrap();
        tokens.insert('b').unwrap();
        std::thread::sleep(SHORT);
        tokens.insert('c').unwrap();
        assert_eq!(tokens.waiting.lock().len(), 1);
    }

    #[test]
    fn their_number_is_bounded() {
        let tokens = Tokens::new(SHORT);
        (0..WAITING_MAX).for_each(|number| drop(tokens.insert(number).unwrap()));
        assert!(matches!(tokens.insert(0), Err(Error::TooManyWaiting(_))));
        std::thread::sleep(SHORT);
        tokens.insert(0).unwrap();
        assert_eq!(tokens.waiting.lock().len(), 1);
    }
}
