//! What must hold whatever the store of the fleet answers, and whatever a batch in it says: bounds are kept,
//! only what Redis takes is sent back, and with the next true answers all is well again.

use warmpath_core::Config;
use warmpath_core::call::{CallBody, HttpCall, Reply};
use warmpath_core::config::SyncOptions;
use warmpath_core::ids::EndpointId;
use warmpath_core::store::MemoryStore;
use warmpath_core::sync::batch::{Batch, MAX_ENGINES, VERSION};
use warmpath_core::sync::{Sync, View};

const CONFIG: &str = r#"{"pools": [{"name": "p", "endpoints": {"static": []}, "policy": "prefix"}],
    "sync": {"redis": {"cluster": "webdis", "key": "the key of the fleet under test"}}}"#;
const MS: u64 = 1000;
/// In an input, what stands between answers.
const NEXT: &[u8] = b"\n--\n";
/// The same for the word of the call: as long as a text of ten digits.
const WORD: &[u8] = b"$4\r\nWORD\r\n";
const MOST_ANSWERS: usize = 16;
/// True answers after which all must be well.
const MOST_CALLS: usize = 8;

struct Envoy {
    sync: Sync,
    store: MemoryStore,
    now_us: u64,
}

fn options() -> SyncOptions {
    let config = Config::parse(CONFIG.as_bytes());
    config.ok().and_then(|config| config.sync).expect("options")
}

impl Envoy {
    fn new() -> Self {
        let (store, now_us) = (MemoryStore::new(), 1_790_000_000_000_000);
        let mut sync = Sync::new(&options(), &store, 77, now_us);
        let ids = [Some(EndpointId(1)), Some(EndpointId(2)), None];
        sync.set_engines(&[0x0101_0101_0101_0101, 2, 3], &ids);
        Envoy {
            sync,
            store,
            now_us,
        }
    }

    /// The next call.
    fn call(&mut self) -> HttpCall {
        for _ in 0..200 {
            self.now_us += 25 * MS;
            if let Some(call) = self.sync.call(&self.store, 10_000, self.now_us) {
                let arguments: Vec<&str> = arguments(&call).collect();
                // Of a look back: word, bytes, entry, batches; else: word, two entries, bytes, entries, stream.
                let entries = match arguments[..] {
                    [_, _, before, _] => vec![before.strip_prefix("%28").unwrap_or(before)],
                    [_, news, now, ..] => vec![news, now],
                    _ => panic!("{arguments:?}"),
                };
                assert!(entries.into_iter().all(is_entry), "{arguments:?}");
                if let CallBody::Bytes(bytes) = &call.body {
                    assert!(bytes.len() <= 80 * 1024);
                }
                return call;
            }
        }
        panic!("no call for five seconds");
    }

    fn ended(&mut self, body: &[u8]) {
        let reply = Reply::Answer { status: 200, body };
        self.sync.ended(reply, self.now_us);
        self.sync.pass_on(&self.store, self.now_us);
    }

    /// With true answers of an empty store the calls succeed.
    fn assert_well(&mut self) {
        let before = self.sync.tally().calls;
        for _ in 0..MOST_CALLS {
            let call = self.call();
            let arguments: Vec<&str> = arguments(&call).collect();
            let told = match arguments[..] {
                [word, _, _, _] => [word, "0-0", "0-0", ""],
                [word, news, now, ..] => [word, news, now, ""],
                _ => panic!("{arguments:?}"),
            };
            let strings = told.map(|it| format!("${}\r\n{it}\r\n", it.len()));
            self.ended(format!("*4\r\n{}", strings.concat()).as_bytes());
        }
        assert!(self.sync.tally().calls >= before + MOST_CALLS as u64);
        assert!(matches!(
            self.sync.tally().view,
            View::Whole | View::Unseen | View::Warming
        ));
    }
}

fn arguments(call: &HttpCall) -> impl Iterator<Item = &str> {
    let path = call.path.strip_suffix(".raw").expect("raw");
    path.split('/').skip(6)
}

/// Whether Redis takes it for the place of an entry.
fn is_entry(text: &str) -> bool {
    let number = |part: &str| part.parse::<u64>().is_ok();
    let id = text.split_once('-');
    text == "%2B" || id.is_some_and(|(ms, count)| number(ms) && number(count))
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(from.len()).position(|it| it == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Answers, one after the other.
pub fn check_answers(input: &[u8]) {
    let mut envoy = Envoy::new();
    let mut rest = input;
    for _ in 0..MOST_ANSWERS {
        let end = rest.windows(NEXT.len()).position(|it| it == NEXT);
        let answer = &rest[..end.unwrap_or(rest.len())];
        let call = envoy.call();
        let word = arguments(&call).next().expect("a word");
        let word = format!("${}\r\n{word}\r\n", word.len());
        envoy.ended(&replace(answer, WORD, word.as_bytes()));
        let Some(end) = end else { break };
        rest = &rest[end + NEXT.len()..];
    }
    envoy.assert_well();
}

/// A batch, as it is, and with the version and the checksum that make it believed.
pub fn check_batch(input: &[u8]) {
    let secret = options().secret;
    assert!(Batch::decode(input, &secret).is_err(), "nobody has the key");
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(input);
    bytes.extend_from_slice(&secret.tag(&bytes).to_le_bytes());
    if let Ok(batch) = Batch::decode(&bytes, &secret) {
        assert!(batch.loads.len() <= MAX_ENGINES && batch.left_out.len() <= MAX_ENGINES);
        let again = batch.encode(&secret);
        assert_eq!(Batch::decode(&again, &secret), Ok(batch));
    }
    let mut envoy = Envoy::new();
    envoy.assert_well();
    let call = envoy.call();
    let word = arguments(&call).next().expect("a word").as_bytes();
    let mut answer = b"*6\r\n".to_vec();
    for string in [word, b"5-0", b"7-0", b"", &bytes, &bytes] {
        answer.extend_from_slice(format!("${}\r\n", string.len()).as_bytes());
        answer.extend_from_slice(string);
        answer.extend_from_slice(b"\r\n");
    }
    envoy.ended(&answer);
    assert!(envoy.sync.tally().received <= 1, "it comes twice");
    assert!(envoy.store.value_bytes() <= 400 * 1024);
    envoy.assert_well();
}
