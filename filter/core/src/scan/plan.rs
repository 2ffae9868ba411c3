//! What every scan looks for, compiled once from the configuration.
//!
//! Pointers, and the fields that each scan reads anyway, become one small trie. A scan walks it
//! beside the open containers, so a key that no pointer names costs one failed lookup and a
//! container off every path costs nothing.

use std::fmt;

/// Most pointers in one plan.
pub const MAX_POINTERS: usize = 64;
/// Most reference tokens in one pointer.
pub const MAX_POINTER_DEPTH: usize = 8;
/// Most bytes of one decoded reference token; a longer object key never matches.
pub const MAX_KEY_BYTES: usize = 128;

/// A node of the trie.
pub(super) type NodeId = u16;
/// The node that stands for the whole body.
pub(super) const ROOT: NodeId = 0;

/// A place for one value that a scan keeps.
pub(super) type SlotId = usize;
pub(super) const MODEL: SlotId = 0;
pub(super) const STREAM: SlotId = 1;
pub(super) const CACHE_SALT: SlotId = 2;
/// The places of an output limit, the first present one wins.
pub(super) const MAX_TOKENS: [SlotId; 4] = [3, 4, 5, 6];
/// Whether a stream is to end with its token counts.
pub(super) const INCLUDE_USAGE: SlotId = 7;
const FIELDS: [&[&str]; 8] = [
    &["model"],
    &["stream"],
    &["cache_salt"],
    &["max_completion_tokens"],
    &["max_tokens"],
    &["max_output_tokens"],
    &["sampling_params", "max_new_tokens"],
    &["stream_options", "include_usage"],
];
/// Paths of the fields with which engines and routers speak to each other: no client has a say in them. The
/// longer ones lead to the same fields by a way round.
pub const OWNED: [&[&str]; 12] = [
    &["kv_transfer_params"],
    &["ec_transfer_params"],
    &["bootstrap_host"],
    &["bootstrap_port"],
    &["bootstrap_room"],
    &["data_parallel_rank"],
    &["routed_dp_rank"],
    &["disagg_prefill_dp_rank"],
    &["vllm_xargs", "kv_transfer_params"],
    &["vllm_xargs", "ec_transfer_params"],
    &["sampling_params", "extra_args", "kv_transfer_params"],
    &["sampling_params", "extra_args", "ec_transfer_params"],
];
const FIRST_OWNED: SlotId = FIELDS.len();
/// What says how many prompts and answers a request is about, and whether the prompt comes back; looked
/// for on demand.
const SHAPE: [&[&str]; 9] = [
    &["n"],
    &["best_of"],
    &["sampling_params", "n"],
    &["echo"],
    &["prompt_logprobs"],
    &["return_logprob"],
    &["prompt", "0"],
    &["text", "0"],
    &["input_ids", "0"],
];
const FIRST_SHAPE: SlotId = FIRST_OWNED + OWNED.len();
/// How many answers are wanted.
pub(super) const CHOICES: [SlotId; 3] = [FIRST_SHAPE, FIRST_SHAPE + 1, FIRST_SHAPE + 2];
/// Whether something of the prompt is to be in the answer.
pub(super) const PROMPT_BACK: [SlotId; 3] = [FIRST_SHAPE + 3, FIRST_SHAPE + 4, FIRST_SHAPE + 5];
/// The first element of a prompt that is a list.
pub(super) const FIRST_PROMPT: [SlotId; 3] = [FIRST_SHAPE + 6, FIRST_SHAPE + 7, FIRST_SHAPE + 8];
/// Where the slots of the caller's pointers begin.
pub(super) const FIRST_POINTER: SlotId = FIRST_SHAPE + SHAPE.len();

/// What the caller wants from every scan. Immutable, shared by all requests.
#[derive(Clone, Debug)]
pub struct ScanPlan {
    nodes: Vec<Node>,
    slots: usize,
    prompt: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    token: Vec<u8>,
    /// The token as an array index, when it is one.
    index: Option<u32>,
    children: Vec<NodeId>,
    /// Slots that take the value of this node.
    slots: Vec<SlotId>,
    /// Slots of this node and of all below it: a repeated key takes their values away.
    subtree: Vec<SlotId>,
    /// Whether clients have no say in it.
    owned: bool,
    /// Whether its elements are counted.
    counted: bool,
}

impl ScanPlan {
    /// Compiles JSON pointers (RFC 6901; `/metadata/user_id`, `/messages/0/name`). The index of a
    /// pointer in `pointers` is its index in [`super::RequestScan::pointer`]. With `prompt` false,
    /// no prompt text is hashed or copied.
    ///
    /// # Errors
    /// The first pointer that is empty, malformed or beyond the bounds of this module.
    pub fn new(pointers: &[String], prompt: bool) -> Result<Self, PointerError> {
        if let Some(pointer) = pointers.get(MAX_POINTERS) {
            return Err(PointerError::new(pointer, Reason::TooMany));
        }
        let mut plan = Self {
            prompt,
            ..Self::default()
        };
        for pointer in pointers {
            let tokens = tokens(pointer).map_err(|reason| PointerError::new(pointer, reason))?;
            plan.add(tokens);
        }
        Ok(plan)
    }

    /// The same plan, which looks for what [`super::RequestScan::shape`] tells as well.
    #[must_use]
    pub fn with_shape(mut self) -> Self {
        for (index, field) in SHAPE.iter().enumerate() {
            let slot = FIRST_SHAPE + index;
            self.add_at(slot, field.iter().map(|token| token.as_bytes().to_vec()));
            if let (true, Some(list)) = (FIRST_PROMPT.contains(&slot), field.first())
                && let Some(list) = self.member(ROOT, list.as_bytes())
                && let Some(list) = self.nodes.get_mut(usize::from(list))
            {
                list.counted = true;
            }
        }
        self
    }

    /// Whether prompt text is hashed.
    #[must_use]
    pub fn prompt(&self) -> bool {
        self.prompt
    }

    /// How many values a scan keeps.
    pub(super) fn slot_count(&self) -> usize {
        self.slots
    }

    /// The child of `node` for an object key.
    pub(super) fn member(&self, node: NodeId, key: &[u8]) -> Option<NodeId> {
        self.child(node, |child| child.token == key)
    }

    /// The child of `node` for an array element.
    pub(super) fn element(&self, node: NodeId, index: u32) -> Option<NodeId> {
        self.child(node, |child| child.index == Some(index))
    }

    /// Slots that take the value of `node`.
    pub(super) fn slots(&self, node: NodeId) -> &[SlotId] {
        self.node(node).map_or(&[], |node| &node.slots)
    }

    /// Slots at and below `node`.
    pub(super) fn subtree(&self, node: NodeId) -> &[SlotId] {
        self.node(node).map_or(&[], |node| &node.subtree)
    }

    /// Whether any pointer goes below `node`.
    pub(super) fn has_children(&self, node: NodeId) -> bool {
        self.node(node)
            .is_some_and(|node| !node.children.is_empty())
    }

    /// Whether clients have no say in what stands at `node`.
    pub(super) fn is_owned(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|node| node.owned)
    }

    /// Whether the elements of the array at `node` are counted.
    pub(super) fn is_counted(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|node| node.counted)
    }

    fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(node))
    }

    fn child(&self, node: NodeId, is_it: impl Fn(&Node) -> bool) -> Option<NodeId> {
        let children = &self.node(node)?.children;
        let found = |&&child: &&NodeId| self.node(child).is_some_and(&is_it);
        children.iter().find(found).copied()
    }

    fn add(&mut self, tokens: Vec<Vec<u8>>) {
        let slot = self.slots;
        self.slots += 1;
        self.add_at(slot, tokens);
    }

    fn add_at(&mut self, slot: SlotId, tokens: impl IntoIterator<Item = Vec<u8>>) {
        let mut node = ROOT;
        for token in tokens {
            node = match self.member(node, &token) {
                Some(child) => child,
                None => self.insert(node, token),
            };
            if let Some(node) = self.nodes.get_mut(usize::from(node)) {
                node.subtree.push(slot);
            }
        }
        if let Some(node) = self.nodes.get_mut(usize::from(node)) {
            node.slots.push(slot);
            node.owned |= (FIRST_OWNED..FIRST_SHAPE).contains(&slot);
        }
    }

    fn insert(&mut self, parent: NodeId, token: Vec<u8>) -> NodeId {
        // At most (64 + 29) pointers of 8 tokens: far below the range of a node id.
        let child = self.nodes.len() as NodeId;
        if let Some(parent) = self.nodes.get_mut(usize::from(parent)) {
            parent.children.push(child);
        }
        self.nodes.push(Node {
            index: array_index(&token),
            token,
            ..Node::default()
        });
        child
    }
}

impl Default for ScanPlan {
    /// The fields of every scan, no pointers, no prompt.
    fn default() -> Self {
        let mut plan = Self {
            nodes: vec![Node::default()],
            slots: 0,
            prompt: false,
        };
        for field in FIELDS.iter().chain(&OWNED) {
            plan.add(
                field
                    .iter()
                    .map(|token| token.as_bytes().to_vec())
                    .collect(),
            );
        }
        plan.slots = FIRST_POINTER;
        plan
    }
}

/// The decoded reference tokens of a pointer.
fn tokens(pointer: &str) -> Result<Vec<Vec<u8>>, Reason> {
    if pointer.is_empty() {
        return Err(Reason::Empty);
    }
    let rest = pointer.strip_prefix('/').ok_or(Reason::NoSlash)?;
    let tokens = rest
        .split('/')
        .map(unescape)
        .collect::<Result<Vec<_>, _>>()?;
    if tokens.len() > MAX_POINTER_DEPTH {
        return Err(Reason::TooDeep);
    }
    if tokens.iter().any(|token| token.len() > MAX_KEY_BYTES) {
        return Err(Reason::TokenTooLong);
    }
    Ok(tokens)
}

/// Resolves `~0` and `~1`.
fn unescape(token: &str) -> Result<Vec<u8>, Reason> {
    let mut bytes = token.bytes();
    let mut decoded = Vec::with_capacity(token.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'~' => match bytes.next() {
                Some(b'0') => b'~',
                Some(b'1') => b'/',
                _ => return Err(Reason::BadEscape),
            },
            byte => byte,
        });
    }
    Ok(decoded)
}

/// RFC 6901: digits without a leading zero.
fn array_index(token: &[u8]) -> Option<u32> {
    let plain = token == b"0"
        || token
            .first()
            .is_some_and(|first| (b'1'..=b'9').contains(first));
    let digits = std::str::from_utf8(token).ok().filter(|_| plain)?;
    digits.parse().ok()
}

/// A pointer that cannot be used, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointerError {
    pointer: String,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Empty,
    NoSlash,
    BadEscape,
    TooDeep,
    TokenTooLong,
    TooMany,
}

impl PointerError {
    fn new(pointer: &str, reason: Reason) -> Self {
        Self {
            pointer: pointer.to_owned(),
            reason,
        }
    }
}

impl fmt::Display for PointerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            Reason::Empty => "it names the whole body, want a field such as `/user`",
            Reason::NoSlash => "it must begin with `/`",
            Reason::BadEscape => "`~` must be written `~0` (and `/` inside a name `~1`)",
            Reason::TooDeep => "more than 8 levels",
            Reason::TokenTooLong => "a name of more than 128 bytes",
            Reason::TooMany => "more than 64 pointers",
        };
        write!(f, "JSON pointer `{}`: {reason}", self.pointer)
    }
}

impl std::error::Error for PointerError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pointers: &[&str]) -> Result<ScanPlan, Reason> {
        let pointers: Vec<String> = pointers.iter().map(|&p| p.to_owned()).collect();
        ScanPlan::new(&pointers, true).map_err(|error| error.reason)
    }

    #[test]
    fn pointers_with_a_common_start_share_nodes() {
        let plan = plan(&["/a/b", "/a/0", "/model"]).unwrap();
        let a = plan.member(ROOT, b"a").unwrap();
        let b = plan.member(a, b"b").unwrap();
        assert_eq!(plan.slots(b), [FIRST_POINTER]);
        assert_eq!(plan.slots(a), [0; 0]);
        assert_eq!(plan.subtree(a), [FIRST_POINTER, FIRST_POINTER + 1]);
        assert_eq!(plan.element(a, 0), plan.member(a, b"0"));
        assert_eq!(plan.element(a, 1), None);
        let model = plan.member(ROOT, b"model").unwrap();
        assert_eq!(plan.slots(model), [MODEL, FIRST_POINTER + 2]);
        assert!(!plan.has_children(model));
    }

    #[test]
    fn escapes_are_resolved() {
        let plan = plan(&["/a~1b~0/"]).unwrap();
        let node = plan.member(ROOT, b"a/b~").unwrap();
        assert!(plan.member(node, b"").is_some());
    }

    #[test]
    fn an_array_index_has_no_leading_zero() {
        assert_eq!(array_index(b"0"), Some(0));
        assert_eq!(array_index(b"10"), Some(10));
        for token in ["", "00", "01", "+1", "-1", "1x", "99999999999"] {
            assert_eq!(array_index(token.as_bytes()), None, "{token}");
        }
    }

    #[test]
    fn unusable_pointers_are_refused() {
        let reason = |pointer: &str| plan(&[pointer]).unwrap_err();
        assert_eq!(reason(""), Reason::Empty);
        assert_eq!(reason("user"), Reason::NoSlash);
        assert_eq!(reason("/a~2"), Reason::BadEscape);
        assert_eq!(reason("/a~"), Reason::BadEscape);
        assert_eq!(reason(&"/a".repeat(9)), Reason::TooDeep);
        assert!(plan(&[&"/a".repeat(8)]).is_ok());
        assert_eq!(
            reason(&format!("/{}", "a".repeat(129))),
            Reason::TokenTooLong
        );
        assert_eq!(plan(&["/a"; 65]).unwrap_err(), Reason::TooMany);
        assert!(plan(&["/a"; 64]).is_ok());
    }

    #[test]
    fn the_error_names_the_pointer() {
        let error = ScanPlan::new(&["user".to_owned()], false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "JSON pointer `user`: it must begin with `/`"
        );
    }
}
