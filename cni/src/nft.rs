//! nf_tables over netlink: tables, chains, rules, sets and their elements as messages of one transaction.
//!
//! Numbers are the kernel's (`include/uapi/linux/netfilter/nf_tables.h`) and never change. All integers are in network order,
//! what is loaded into registers as the packet has it.

use std::io;

use nix::errno::Errno;

use crate::netlink::{Attributes, Messages, Socket, attribute, attributes, flags};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = NEWTABLE | 2;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
const GETRULE: u16 = NEWTABLE | 7;
const DELRULE: u16 = NEWTABLE | 8;
const NEWSET: u16 = NEWTABLE | 9;
const NEWSETELEM: u16 = NEWTABLE | 12;
const GETSETELEM: u16 = NEWTABLE | 13;
const DELSETELEM: u16 = NEWTABLE | 14;

const FAMILY_INET: u8 = 1;
const HEADER: usize = 4;

const LIST_ELEMENT: u16 = 1;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_INTERVAL_END: u32 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_USERDATA: u16 = 7;

/// A message's attributes are at most 64 KiB long.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// A transaction stays well below the socket's buffers.
const TRANSACTION_BYTES: usize = 256 * 1024;

// === Expressions ===

/// A 32-bit register; wider values take the ones that follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    fn number(self) -> u32 {
        self.0 + 8
    }
}

/// `NFT_META_*`
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
}

/// `NFT_CT_*`
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tracked {
    State = 0,
    Status = 2,
    DestinationPort = 12,
    Destination4 = 20,
    Destination6 = 22,
}

/// `NFT_PAYLOAD_*_HEADER`
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layer {
    Network = 1,
    Transport = 2,
}

/// The expressions of a rule, in order.
#[derive(Debug, Default)]
pub(crate) struct Rule(Attributes);

impl Rule {
    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> Self {
        self.0.nest(LIST_ELEMENT, |element| {
            element.text(1, name).nest(2, fill);
        });
        self
    }

    pub(crate) fn meta(self, key: Meta, into: Register) -> Self {
        self.expression("meta", |out| {
            out.number(2, key as u32).number(1, into.number());
        })
    }

    pub(crate) fn payload(self, layer: Layer, offset: u32, length: u32, into: Register) -> Self {
        self.expression("payload", |out| {
            out.number(1, into.number()).number(2, layer as u32).number(3, offset).number(4, length);
        })
    }

    /// Puts a register's value into the packet, and mends the checksum at an offset of the same layer.
    pub(crate) fn write_payload(
        self,
        layer: Layer,
        offset: u32,
        length: u32,
        from: Register,
        checksum: u32,
    ) -> Self {
        const CHECKSUM_INTERNET: u32 = 1;
        self.expression("payload", |out| {
            out.number(5, from.number()).number(2, layer as u32).number(3, offset).number(4, length);
            out.number(6, CHECKSUM_INTERNET).number(7, checksum);
        })
    }

    /// Puts a value into a register.
    pub(crate) fn load(self, register: Register, value: &[u8]) -> Self {
        self.expression("immediate", |out| {
            out.number(1, register.number()).nest(2, |data| {
                data.put(DATA_VALUE, value);
            });
        })
    }

    /// A value of the tracked connection's original direction.
    pub(crate) fn tracked(self, key: Tracked, into: Register) -> Self {
        self.expression("ct", |out| {
            out.number(2, key as u32).number(1, into.number());
            if !matches!(key, Tracked::State | Tracked::Status) {
                out.put(3, &[0]);
            }
        })
    }

    pub(crate) fn equal(self, register: Register, value: &[u8]) -> Self {
        self.compare(register, 0, value)
    }

    pub(crate) fn differs(self, register: Register, value: &[u8]) -> Self {
        self.compare(register, 1, value)
    }

    fn compare(self, register: Register, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |out| {
            out.number(1, register.number()).number(2, operator).nest(3, |data| {
                data.put(DATA_VALUE, value);
            });
        })
    }

    pub(crate) fn mask(self, register: Register, mask: [u8; 4]) -> Self {
        self.expression("bitwise", |out| {
            out.number(1, register.number()).number(2, register.number()).number(3, 4);
            out.nest(4, |data| {
                data.put(DATA_VALUE, &mask);
            });
            out.nest(5, |data| {
                data.put(DATA_VALUE, &[0; 4]);
            });
        })
    }

    pub(crate) fn in_set(self, set: &str, register: Register) -> Self {
        self.expression("lookup", |out| {
            out.text(1, set).number(2, register.number());
        })
    }

    pub(crate) fn not_in_set(self, set: &str, register: Register) -> Self {
        self.expression("lookup", |out| {
            out.text(1, set).number(2, register.number()).number(5, 1);
        })
    }

    /// Looks a key up in a map; the rule ends here when it is not there.
    pub(crate) fn map(self, map: &str, key: Register, into: Register) -> Self {
        self.expression("lookup", |out| {
            out.text(1, map).number(2, key.number()).number(3, into.number());
        })
    }

    /// The destination is an address of this host.
    pub(crate) fn for_this_host(self) -> Self {
        const LOCAL: u32 = 2;
        let register = Register(0);
        self.expression("fib", |out| {
            // Into the register the address type (3), by destination (flag 2).
            out.number(1, register.number()).number(2, 3).number(3, 2);
        })
        .equal(register, &LOCAL.to_ne_bytes())
    }

    /// Sends the connection to an address and port from registers.
    pub(crate) fn translate(self, family: u8, address: Register, port: Register) -> Self {
        self.expression("nat", |out| {
            out.number(1, 1).number(2, u32::from(family));
            out.number(3, address.number()).number(5, port.number());
        })
    }

    /// Gives the connection this host's address. Ports are drawn at random by the kernel: two connections begun at the same
    /// moment would otherwise race for the same one and one would be dropped.
    pub(crate) fn masquerade(self) -> Self {
        const FULLY_RANDOM: u32 = 1 << 4;
        self.expression("masq", |out| {
            out.number(1, FULLY_RANDOM);
        })
    }

    /// The packet is of no connection: nothing is remembered of it, and nothing translated.
    pub(crate) fn untrack(self) -> Self {
        self.expression("notrack", |_| {})
    }

    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(-3, Some(chain))
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(1, None)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(0, None)
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |out| {
            out.number(1, 0).nest(2, |data| {
                data.nest(DATA_VERDICT, |verdict| {
                    verdict.put(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        })
    }
}

// === Objects ===

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    /// `NF_INET_*`
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

/// A set or map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// Type number (for people who list the set) and length.
    pub(crate) key: (u32, u32),
    pub(crate) data: Option<(u32, u32)>,
    pub(crate) interval: bool,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    pub(crate) data: Option<Vec<u8>>,
    /// The first key after an interval.
    pub(crate) end: bool,
}

/// A transaction on one table.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    table: &'a str,
    messages: Messages,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(table: &'a str) -> Self {
        let mut messages = Messages::new();
        frame(&mut messages, BATCH_BEGIN);
        Self { table, messages }
    }

    fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let table = self.table;
        self.messages.push(kind, flags, |out| {
            out.raw(&[FAMILY_INET, 0, 0, 0]).text(1, table);
            fill(out);
        });
    }

    pub(crate) fn table(&mut self) {
        self.push(NEWTABLE, flags::CREATE, |out| {
            out.number(2, 0);
        });
    }

    pub(crate) fn delete_table(&mut self) {
        self.push(DELTABLE, 0, |_| {});
    }

    pub(crate) fn chain(&mut self, name: &str, hook: Option<Hook>) {
        self.push(NEWCHAIN, flags::CREATE, |out| {
            out.text(3, name);
            if let Some(hook) = hook {
                out.nest(4, |out| {
                    out.number(1, hook.number).put(2, &hook.priority.to_be_bytes());
                });
                out.text(7, hook.kind);
            }
        });
    }

    /// Removes a chain's rules.
    pub(crate) fn clear(&mut self, chain: &str) {
        self.push(DELRULE, 0, |out| {
            out.text(2, chain);
        });
    }

    /// Appends a rule. The comment is what `nft list` shows.
    pub(crate) fn rule(&mut self, chain: &str, comment: &str, rule: Rule) {
        let expressions = rule.0.into_bytes();
        let userdata = userdata(comment);
        self.push(NEWRULE, flags::CREATE | flags::APPEND, |out| {
            out.text(2, chain).put(4 | 0x8000, &expressions).put(RULE_USERDATA, &userdata);
        });
    }

    pub(crate) fn set(&mut self, set: &Set, id: u32) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        let interval = if set.interval { INTERVAL } else { 0 };
        let map = if set.data.is_some() { MAP } else { 0 };
        self.push(NEWSET, flags::CREATE, |out| {
            out.text(2, set.name).number(3, interval | map);
            out.number(4, set.key.0).number(5, set.key.1);
            if let Some((kind, length)) = set.data {
                out.number(6, kind).number(7, length);
            }
            out.number(10, id);
        });
    }

    pub(crate) fn add(&mut self, elements: &[&Element]) {
        self.elements(NEWSETELEM, flags::CREATE, elements);
    }

    pub(crate) fn remove(&mut self, elements: &[&Element]) {
        self.elements(DELSETELEM, 0, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, elements: &[&Element]) {
        let same_set = elements.chunk_by(|a, b| a.set == b.set);
        for chunk in same_set.flat_map(|elements| elements.chunks(ELEMENTS_PER_MESSAGE)) {
            let Some(first) = chunk.first() else { continue };
            self.push(kind, flags, |out| {
                out.text(2, first.set).nest(ELEMENTS, |list| {
                    for element in chunk {
                        list.nest(LIST_ELEMENT, |out| write_element(out, element));
                    }
                });
            });
        }
    }

    pub(crate) fn is_large(&self) -> bool {
        self.messages.size() > TRANSACTION_BYTES
    }

    /// Carries it out: all or nothing.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> io::Result<()> {
        if self.messages.len() == 1 {
            return Ok(());
        }
        frame(&mut self.messages, BATCH_END);
        socket.transaction(self.messages).map_err(|(_, error)| error)
    }
}

fn frame(messages: &mut Messages, kind: u16) {
    messages.push(kind, 0, |out| {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        out.raw(&[0, 0, high, low]);
    });
}

fn write_element(out: &mut Attributes, element: &Element) {
    if element.end {
        out.number(ELEMENT_FLAGS, ELEMENT_INTERVAL_END);
    }
    out.nest(ELEMENT_KEY, |key| {
        key.put(DATA_VALUE, &element.key);
    });
    if let Some(data) = &element.data {
        out.nest(ELEMENT_DATA, |value| {
            value.put(DATA_VALUE, data);
        });
    }
}

/// libnftnl's form of a rule's comment: type 0, length, text with its zero.
fn userdata(comment: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

// === Questions ===

/// Chain and comment of each of a table's rules; none when there is no such table.
pub(crate) fn comments(socket: &mut Socket, table: &str) -> io::Result<Vec<(String, String)>> {
    let rules = socket.dump(GETRULE, |out| {
        out.raw(&[FAMILY_INET, 0, 0, 0]).text(1, table);
    });
    Ok(known(rules)?
        .iter()
        .map(|rule| {
            let rule = rule.get(HEADER..).unwrap_or_default();
            let chain = attribute(rule, RULE_CHAIN).unwrap_or_default();
            let userdata = attribute(rule, RULE_USERDATA).unwrap_or_default();
            (crate::netlink::name(chain), crate::netlink::name(userdata.get(2..).unwrap_or_default()))
        })
        .collect())
}

/// The elements of a set; none when the set or its table is not there.
pub(crate) fn elements(socket: &mut Socket, table: &str, set: &'static str) -> io::Result<Vec<Element>> {
    let lists = socket.dump(GETSETELEM, |out| {
        out.raw(&[FAMILY_INET, 0, 0, 0]).text(1, table).text(2, set);
    });
    let mut found = Vec::new();
    for list in known(lists)? {
        let Some(list) = attribute(list.get(HEADER..).unwrap_or_default(), ELEMENTS) else { continue };
        for (_, element) in attributes(list) {
            let value = |kind| attribute(element, kind).and_then(|data| attribute(data, DATA_VALUE));
            let end = attribute(element, ELEMENT_FLAGS)
                .and_then(|flags| Some(u32::from_be_bytes(flags.try_into().ok()?)))
                .is_some_and(|flags| flags & ELEMENT_INTERVAL_END != 0);
            if let Some(key) = value(ELEMENT_KEY) {
                let data = value(ELEMENT_DATA).map(<[u8]>::to_vec);
                found.push(Element { set, key: key.to_vec(), data, end });
            }
        }
    }
    Ok(found)
}

fn known(answer: io::Result<Vec<Vec<u8>>>) -> io::Result<Vec<Vec<u8>>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Vec::new()),
        other => other,
    }
}

// === Events ===

/// Whether an event takes something of a table away that is written once: the table, a chain, a rule, a set. Elements come and
/// go all the time.
pub(crate) fn takes_away(kind: u16, payload: &[u8], table: &str) -> bool {
    const DELCHAIN: u16 = NEWTABLE | 5;
    const DELSET: u16 = NEWTABLE | 11;
    // The table's name is the first attribute of all of these.
    const TABLE: u16 = 1;
    matches!(kind, DELTABLE | DELCHAIN | DELRULE | DELSET)
        && payload
            .get(HEADER..)
            .and_then(|attributes| attribute(attributes, TABLE))
            .is_some_and(|name| crate::netlink::name(name) == table)
}
