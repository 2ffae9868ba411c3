//! The values a scan keeps: it walks the plan's trie beside the open containers and copies the
//! values of the nodes it meets.
//!
//! A value becomes visible when it has ended. When a key comes again, all values at and below it
//! are forgotten first: the last one wins, as in Python's `json`. Copies are bounded by
//! [`MAX_VALUE_BYTES`] each.

use std::ops::Range;

use super::events::{Literal, Place, Position};
use super::plan::{MAX_POINTER_DEPTH, MODEL, NodeId, ROOT, ScanPlan, SlotId};

/// Most bytes kept of one value.
pub const MAX_VALUE_BYTES: usize = 1024;

/// A body field that should hold a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Not there, `null`, or not yet seen.
    Absent,
    /// Another JSON type than a string.
    WrongType,
    /// A string longer than [`MAX_VALUE_BYTES`].
    TooLong,
    /// The decoded string, possibly empty.
    Text(&'a [u8]),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Absent,
    True,
    /// `false`, an array or an object: present, and of no further interest.
    Other,
    Number,
    Text,
    CutText,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    kind: Kind,
    bytes: Vec<u8>,
}

/// An open container on the path of some pointer.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    node: NodeId,
    next_index: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    slots: Vec<Slot>,
    model_span: Option<Range<usize>>,
    levels: [Level; MAX_POINTER_DEPTH],
    /// How many of the open containers, from the outermost, are on the path of a pointer.
    on_path: usize,
    /// The node of the last key read, until its value starts.
    member: Option<NodeId>,
    /// The node of the scalar being read, when it is kept.
    kept: Option<NodeId>,
    kept_from: usize,
    copy: Vec<u8>,
    copy_is_cut: bool,
    /// Whether a field was met in which clients have no say.
    owned: bool,
    /// Elements of the counted array read last.
    elements: u32,
}

impl Fields {
    /// Whether a key inside `depth` open containers may lie on a path.
    #[inline]
    pub(super) fn wants_key(&self, depth: usize) -> bool {
        depth != 0 && self.on_path == depth
    }

    /// A key has ended. `key` is `None` when it is too long to match.
    pub(super) fn key(&mut self, plan: &ScanPlan, key: Option<&[u8]>) {
        let level = self.on_path.checked_sub(1);
        let level = level.and_then(|level| self.levels.get(level));
        self.member = level
            .zip(key)
            .and_then(|(level, key)| plan.member(level.node, key));
    }

    /// Whether a scalar is being kept.
    #[inline]
    pub(super) fn is_keeping(&self) -> bool {
        self.kept.is_some()
    }

    /// A string starts at `at`, the offset of its opening quote in the body.
    #[inline]
    pub(super) fn start_string(&mut self, plan: &ScanPlan, place: Place, at: usize) {
        self.kept_from = at;
        self.start_number(plan, place);
    }

    /// A number starts.
    #[inline]
    pub(super) fn start_number(&mut self, plan: &ScanPlan, place: Place) {
        if let Some(node) = self.enter(plan, place)
            && !plan.slots(node).is_empty()
        {
            self.kept = Some(node);
            self.copy.clear();
            self.copy_is_cut = false;
        }
    }

    /// A piece of the scalar being kept.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let free = MAX_VALUE_BYTES.saturating_sub(self.copy.len());
        let kept = piece.get(..free).unwrap_or(piece);
        self.copy_is_cut |= kept.len() < piece.len();
        self.copy.extend_from_slice(kept);
    }

    /// A string ended; `end` is the offset after its closing quote.
    #[inline]
    pub(super) fn end_string(&mut self, plan: &ScanPlan, end: usize) {
        if let Some(node) = self.kept.take() {
            let kind = if self.copy_is_cut {
                Kind::CutText
            } else {
                Kind::Text
            };
            self.store(plan, node, kind);
            if plan.slots(node).contains(&MODEL) {
                self.model_span = Some(self.kept_from..end);
            }
        }
    }

    /// A number ended.
    #[inline]
    pub(super) fn end_number(&mut self, plan: &ScanPlan) {
        if let Some(node) = self.kept.take() {
            self.store(plan, node, Kind::Number);
        }
    }

    /// A whole `true`, `false` or `null`.
    #[inline]
    pub(super) fn literal(&mut self, plan: &ScanPlan, place: Place, literal: Literal) {
        if let Some(node) = self.enter(plan, place) {
            let kind = match literal {
                Literal::True => Kind::True,
                Literal::False => Kind::Other,
                Literal::Null => Kind::Absent,
            };
            self.copy.clear();
            self.store(plan, node, kind);
        }
    }

    /// An object or array opens.
    #[inline]
    pub(super) fn open(&mut self, plan: &ScanPlan, place: Place) {
        let Some(node) = self.enter(plan, place) else {
            return;
        };
        self.copy.clear();
        self.store(plan, node, Kind::Other);
        if plan.has_children(node)
            && let Some(level) = self.levels.get_mut(place.depth)
        {
            *level = Level {
                node,
                next_index: 0,
            };
            self.on_path = place.depth + 1;
        }
    }

    /// A container closed and `depth` are still open.
    #[inline]
    pub(super) fn close(&mut self, depth: usize) {
        self.on_path = self.on_path.min(depth);
    }

    /// The node of a value that starts, if it has one; its old values are forgotten.
    #[inline]
    fn enter(&mut self, plan: &ScanPlan, place: Place) -> Option<NodeId> {
        match self.on_path == place.depth {
            true => self.enter_on_path(plan, place),
            false => None,
        }
    }

    fn enter_on_path(&mut self, plan: &ScanPlan, place: Place) -> Option<NodeId> {
        let node = match place.position {
            Position::Body => ROOT,
            Position::Member => self.member.take()?,
            Position::First | Position::Later => {
                let level = self.levels.get_mut(place.depth.checked_sub(1)?)?;
                let index = level.next_index;
                level.next_index = index.saturating_add(1);
                if plan.is_counted(level.node) {
                    self.elements = level.next_index;
                }
                plan.element(level.node, index)?
            }
        };
        self.owned |= plan.is_owned(node);
        self.forget(plan, node);
        Some(node)
    }

    fn forget(&mut self, plan: &ScanPlan, node: NodeId) {
        for &slot in plan.subtree(node) {
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.kind = Kind::Absent;
            }
            if slot == MODEL {
                self.model_span = None;
            }
        }
    }

    fn store(&mut self, plan: &ScanPlan, node: NodeId, kind: Kind) {
        if self.slots.len() < plan.slot_count() {
            self.slots.resize_with(plan.slot_count(), Slot::default);
        }
        for &slot in plan.slots(node) {
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.kind = kind;
                slot.bytes.clear();
                slot.bytes.extend_from_slice(&self.copy);
            }
        }
    }

    pub(super) fn owned(&self) -> bool {
        self.owned
    }

    /// How many elements the array of a slot's first element has; `None` unless that is a text or a
    /// container.
    pub(super) fn elements(&self, first: SlotId) -> Option<u32> {
        let kind = self.slots.get(first)?.kind;
        matches!(kind, Kind::Text | Kind::CutText | Kind::Other).then_some(self.elements)
    }

    /// Whether a slot has another value than `null`, `false` or a container.
    pub(super) fn is_set(&self, slot: SlotId) -> bool {
        let kind = self.slots.get(slot).map(|slot| slot.kind);
        !matches!(kind, None | Some(Kind::Absent | Kind::Other))
    }

    pub(super) fn model_span(&self) -> Option<Range<usize>> {
        self.model_span.clone()
    }

    /// The value of a slot as a string field.
    pub(super) fn text(&self, slot: SlotId) -> Field<'_> {
        match self.slots.get(slot) {
            None => Field::Absent,
            Some(slot) => match slot.kind {
                Kind::Absent => Field::Absent,
                Kind::True | Kind::Other | Kind::Number => Field::WrongType,
                Kind::CutText => Field::TooLong,
                Kind::Text => Field::Text(&slot.bytes),
            },
        }
    }

    /// The value of a slot as a key: a non-empty string, possibly cut, or a number's literal text.
    pub(super) fn scalar(&self, slot: SlotId) -> Option<&[u8]> {
        let slot = self.slots.get(slot)?;
        let is_scalar = matches!(slot.kind, Kind::Text | Kind::CutText | Kind::Number);
        (is_scalar && !slot.bytes.is_empty()).then_some(&slot.bytes)
    }

    /// The value of a slot as a non-empty string, possibly cut.
    pub(super) fn string(&self, slot: SlotId) -> Option<&[u8]> {
        let slot = self.slots.get(slot)?;
        let is_string = matches!(slot.kind, Kind::Text | Kind::CutText);
        (is_string && !slot.bytes.is_empty()).then_some(&slot.bytes)
    }

    pub(super) fn is_true(&self, slot: SlotId) -> bool {
        self.slots
            .get(slot)
            .is_some_and(|slot| slot.kind == Kind::True)
    }

    /// The value of a slot as a whole number; one beyond the range is the largest of it.
    pub(super) fn count(&self, slot: SlotId) -> Option<u32> {
        let slot = self.slots.get(slot)?;
        let digits = slot.bytes.iter().all(u8::is_ascii_digit);
        (slot.kind == Kind::Number && digits).then(|| {
            slot.bytes.iter().fold(0_u32, |count, digit| {
                count
                    .saturating_mul(10)
                    .saturating_add(u32::from(digit - b'0'))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Api, RequestScan};
    use super::*;

    fn scan(body: &str) -> RequestScan {
        let pointers = ["/user", "/metadata/user_id", "/a/1/b", "/model"];
        let plan = ScanPlan::new(&pointers.map(str::to_owned), false).unwrap();
        let mut scan = RequestScan::new(Api::ChatCompletions);
        scan.feed(&plan, body.as_bytes()).unwrap();
        scan.finish().unwrap();
        scan
    }

    #[test]
    fn the_model_is_known_when_its_value_has_ended() {
        let plan = ScanPlan::default();
        let mut scan = RequestScan::new(Api::ChatCompletions);
        scan.feed(&plan, b"{\"model\":\"llama").unwrap();
        assert_eq!((scan.model(), scan.model_span()), (Field::Absent, None));
        scan.feed(&plan, b"-3\"").unwrap();
        assert_eq!(scan.model(), Field::Text(b"llama-3"));
        assert_eq!(scan.model_span(), Some(9..18));
    }

    #[test]
    fn the_model_may_be_anything() {
        let long = format!("{{\"model\":\"{}\"}}", "m".repeat(MAX_VALUE_BYTES + 1));
        assert_eq!(scan(&long).model(), Field::TooLong);
        assert_eq!(scan(&long).model_span(), Some(9..long.len() - 1));
        let most = long.replacen('m', "", 2).replacen("odel", "model", 1);
        assert!(matches!(scan(&most).model(), Field::Text(text) if text.len() == MAX_VALUE_BYTES));
        assert_eq!(scan("{\"model\":\"\"}").model(), Field::Text(b""));
        assert_eq!(scan("{\"model\":null}").model(), Field::Absent);
        for value in ["1", "true", "{\"model\":\"x\"}", "[\"x\"]"] {
            let scan = scan(&format!("{{\"model\":{value}}}"));
            assert_eq!((scan.model(), scan.model_span()), (Field::WrongType, None));
        }
        assert_eq!(scan("{\"x\":{\"model\":\"a\"}}").model(), Field::Absent);
    }

    #[test]
    fn the_last_value_of_a_key_wins() {
        let twice = scan(r#"{"model":"a","stream":true,"model":"bb","stream":false}"#);
        assert_eq!(twice.model(), Field::Text(b"bb"));
        assert_eq!(twice.model_span(), Some(35..39));
        assert_eq!(twice.pointer(3), Some(&b"bb"[..]));
        assert!(!twice.stream());
        let gone = scan(r#"{"metadata":{"user_id":"u"},"metadata":{}}"#);
        assert_eq!(gone.pointer(1), None);
    }

    #[test]
    fn pointers_give_strings_and_numbers() {
        let found = scan(r#"{"user":"u\n","metadata":{"user_id":-1.5e3},"a":[{"b":1},{"b":2}]}"#);
        assert_eq!(found.pointer(0), Some(&b"u\n"[..]));
        assert_eq!(found.pointer(1), Some(&b"-1.5e3"[..]));
        assert_eq!(found.pointer(2), Some(&b"2"[..]));
        assert_eq!(found.pointer(4), None);
        for value in ["null", "true", "{}", "[]", "\"\""] {
            assert_eq!(
                scan(&format!("{{\"user\":{value}}}")).pointer(0),
                None,
                "{value}"
            );
        }
        let long = scan(&format!("{{\"user\":\"{}\"}}", "u".repeat(3000)));
        assert_eq!(long.pointer(0).map(<[u8]>::len), Some(MAX_VALUE_BYTES));
    }

    #[test]
    fn text_of_a_prompt_never_matches() {
        let body = r#"{"messages":[{"user":"x","content":"\"user\":\"y\",\"model\":\"z\""}]}"#;
        assert_eq!(scan(body).pointer(0), None);
        assert_eq!(scan(body).model(), Field::Absent);
    }

    #[test]
    fn max_tokens_has_four_names() {
        let max = |body: &str| scan(body).max_tokens();
        assert_eq!(
            max(r#"{"max_tokens":5,"max_completion_tokens":6}"#),
            Some(6)
        );
        assert_eq!(
            max(r#"{"max_tokens":5,"max_completion_tokens":null}"#),
            Some(5)
        );
        assert_eq!(max(r#"{"max_output_tokens":7}"#), Some(7));
        assert_eq!(max(r#"{"sampling_params":{"max_new_tokens":8}}"#), Some(8));
        assert_eq!(max(r#"{"max_tokens":99999999999}"#), Some(u32::MAX));
        for value in ["-1", "1.5", "\"5\"", "true"] {
            assert_eq!(max(&format!("{{\"max_tokens\":{value}}}")), None, "{value}");
        }
    }

    #[test]
    fn usage_of_a_stream_is_asked_for_with_true_alone() {
        let asks =
            |options: &str| scan(&format!("{{\"stream_options\":{options}}}")).include_usage();
        assert!(asks(r#"{"include_usage":true}"#));
        for options in [
            "true",
            "null",
            "{}",
            r#"{"include_usage":1}"#,
            r#"{"include_usage":false}"#,
            r#"{"x":{"include_usage":true}}"#,
        ] {
            assert!(!asks(options), "{options}");
        }
        assert!(!scan(r#"{"include_usage":true}"#).include_usage());
        let twice = r#"{"stream_options":{"include_usage":true},"stream_options":null}"#;
        assert!(!scan(twice).include_usage());
    }

    #[test]
    fn the_cache_salt_is_a_string() {
        assert_eq!(scan(r#"{"cache_salt":"s"}"#).cache_salt(), Some(&b"s"[..]));
        assert_eq!(scan(r#"{"cache_salt":5}"#).cache_salt(), None);
        assert_eq!(scan(r#"{"cache_salt":""}"#).cache_salt(), None);
    }
}
