//! The bytes of D-Bus messages, as far as calls of systemd need them.
//!
//! D-Bus Specification, "Type System" and "Message Protocol": values are aligned to their size counted from the message's first
//! byte, arrays carry their length in bytes, messages begin with byte order, kind, flags, version, length of the body, a number
//! and an array of header fields. Everything is little-endian here; both ends are on one machine, and systemd answers in its own
//! order, which is the machine's.

/// Longest answer that is read: the errors and object paths of systemd are far shorter. In bytes.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// Length of what every message begins with, up to and with the length of the header fields.
pub(super) const PREAMBLE: usize = 16;

/// A value with its type, as a property has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Flag(_) => "b",
            Self::Number(_) => "t",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// A named property.
pub(super) type Property = (&'static str, Value);

/// Bytes of a message, or of its body.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

/// What does not fit into a `u32` is refused by its reader: none of what is written here is that long.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.number(u32::from(value));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array of elements that are aligned to `to` bytes.
    fn array(&mut self, to: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let place = self.0.len() - 4;
        self.align(to);
        let begin = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - begin).to_le_bytes();
        self.0[place..place + 4].copy_from_slice(&bytes);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Flag(flag) => self.flag(*flag),
            Value::Number(number) => {
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Numbers(numbers) => self.array(4, |writer| {
                for number in numbers {
                    writer.number(*number);
                }
            }),
            Value::Bytes(bytes) => self.array(1, |writer| writer.0.extend(bytes)),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }

    /// An empty `a(sa(sv))`: the units that are started along.
    pub(super) fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// A call of `org.freedesktop.systemd1.Manager`, ready to be sent. `body` has the types of `signature`.
pub(super) fn call(serial: u32, member: &str, signature: &str, body: Writer) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    const PROTOCOL: u8 = 1;
    let mut message = Writer(vec![b'l', METHOD_CALL, 0, PROTOCOL]);
    message.number(length(body.0.len()));
    message.number(serial);
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", member),
        (6, "s", "org.freedesktop.systemd1"),
        (8, "g", signature),
    ];
    message.array(8, |writer| {
        for (code, kind, value) in fields {
            writer.align(8);
            writer.0.push(code);
            writer.signature(kind);
            if kind == "g" { writer.signature(value) } else { writer.text(value) }
        }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done.
    Done,
    /// Refused: the error's name and text.
    Refused { name: String, text: String },
    /// Something else, or the answer to another call.
    Other,
}

/// How long the whole message is that begins with these [`PREAMBLE`] bytes; `None` when it is none, or too long.
pub(super) fn total(preamble: &[u8]) -> Option<usize> {
    let mut reader = Reader { bytes: preamble, at: 0 };
    if reader.byte()? != b'l' {
        return None;
    }
    reader.at = 4;
    let body = reader.number()?;
    reader.number()?;
    let fields = reader.number()?;
    let header = PREAMBLE.checked_add(usize::try_from(fields).ok()?)?.checked_next_multiple_of(8)?;
    header.checked_add(usize::try_from(body).ok()?).filter(|total| *total <= MESSAGE_MAX)
}

/// Reads a whole message, to the call with number `serial`.
pub(super) fn answer(message: &[u8], serial: u32) -> Option<Answer> {
    const METHOD_RETURN: u8 = 2;
    const ERROR: u8 = 3;
    let mut reader = Reader { bytes: message, at: 1 };
    let kind = reader.byte()?;
    reader.at = PREAMBLE - 4;
    let end = PREAMBLE.checked_add(usize::try_from(reader.number()?).ok()?)?;
    let (mut answers, mut name, mut first) = (None, None, String::new());
    while reader.at < end {
        reader.align(8)?;
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (_, "u") => {
                let number = reader.number()?;
                answers = if code == 5 { Some(number) } else { answers };
            }
            (_, "s" | "o") => {
                let text = reader.text()?;
                name = if code == 4 { Some(text) } else { name };
            }
            (_, "g") => {
                let signature = reader.signature()?;
                first = if code == 8 { signature } else { first };
            }
            _ => return None,
        }
    }
    if answers != Some(serial) {
        return Some(Answer::Other);
    }
    match kind {
        METHOD_RETURN => Some(Answer::Done),
        ERROR => {
            reader.at = end.next_multiple_of(8);
            let text = if first.starts_with('s') { reader.text()? } else { String::new() };
            Some(Answer::Refused { name: name.unwrap_or_default(), text })
        }
        _ => Some(Answer::Other),
    }
}

#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4)?;
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn words(&mut self, count: usize) -> Option<String> {
        let text = String::from_utf8(self.take(count)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn text(&mut self) -> Option<String> {
        let count = usize::try_from(self.number()?).ok()?;
        self.words(count)
    }

    fn signature(&mut self) -> Option<String> {
        let count = usize::from(self.byte()?);
        self.words(count)
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A message as systemd sends it: kind, header fields, body.
    pub(in super::super) fn message(kind: u8, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
        let mut writer = Writer(vec![b'l', kind, 1, 1]);
        writer.number(length(body.len()));
        writer.number(77);
        writer.array(8, |writer| {
            for (code, kind, value) in fields {
                writer.align(8);
                writer.0.push(*code);
                writer.signature(kind);
                match *kind {
                    "u" => writer.number(value.parse().unwrap_or_default()),
                    "g" => writer.signature(value),
                    _ => writer.text(value),
                }
            }
        });
        writer.align(8);
        writer.0.extend(body);
        writer.0
    }
}

#[cfg(test)]
mod tests {
    use super::testing::message;
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.text(text);
        writer.0
    }

    #[test]
    fn values_are_aligned_and_say_their_type() {
        let mut writer = Writer::default();
        writer.text("a");
        writer.properties(&[("Delegate", Value::Flag(true)), ("MemoryMax", Value::Number(7))]);
        #[rustfmt::skip]
        let wanted = [
            &[1, 0, 0, 0][..], b"a\0", &[0; 2],
            // The array's length counts from its first element, which is aligned to 8 bytes.
            &[56, 0, 0, 0], &[0; 4],
            &[8, 0, 0, 0], b"Delegate\0", b"\x01b\0", &[1, 0, 0, 0], &[0; 4],
            &[9, 0, 0, 0], b"MemoryMax\0", b"\x01t\0", &[0; 7], &[7, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(writer.0, wanted);
    }

    #[test]
    fn a_call_is_as_long_as_it_says() {
        let mut body = Writer::default();
        body.text("a.scope");
        let call = call(3, "ResetFailedUnit", "s", body);
        assert_eq!(total(&call), Some(call.len()));
        assert_eq!(call[..4], [b'l', 1, 0, 1]);
        // The body begins aligned.
        assert_eq!((call.len() - 12) % 8, 0);
    }

    #[test]
    fn answers_are_told_apart() {
        let done = message(2, &[(5, "u", "3"), (8, "g", "o")], &text("/job/1"));
        assert_eq!(total(&done), Some(done.len()));
        assert_eq!(answer(&done, 3), Some(Answer::Done));
        assert_eq!(answer(&done, 4), Some(Answer::Other));
        let fields = [(5, "u", "3"), (4, "s", "org.freedesktop.systemd1.UnitExists"), (8, "g", "s")];
        let refused = message(3, &fields, &text("Unit a.scope was already loaded"));
        let wanted = Answer::Refused {
            name: "org.freedesktop.systemd1.UnitExists".to_owned(),
            text: "Unit a.scope was already loaded".to_owned(),
        };
        assert_eq!(answer(&refused, 3), Some(wanted));
        let signal = message(4, &[(1, "o", "/"), (2, "s", "x.y"), (3, "s", "JobNew")], &[]);
        assert_eq!(answer(&signal, 3), Some(Answer::Other));
    }

    #[test]
    fn what_is_cut_off_or_no_message_is_nothing() {
        let whole = message(3, &[(5, "u", "3"), (4, "s", "x.y"), (8, "g", "s")], &text("no"));
        for end in PREAMBLE..whole.len() {
            assert_eq!(answer(&whole[..end], 3), None, "cut off after {end} bytes");
        }
        assert_eq!(total(&[b'B'; PREAMBLE]), None);
        let mut long = whole[..PREAMBLE].to_vec();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(total(&long), None);
        // A header that is longer than the message.
        let mut odd = whole;
        odd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(answer(&odd, 3), None);
    }
}
