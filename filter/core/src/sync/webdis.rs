//! The store as it is asked: Redis through Webdis, one HTTP call for each interval.
//!
//! Two capped streams: `{NAME}:news` has batches with news of prompts, `{NAME}:now` those that tell load
//! only, so that an idle fleet does not push out what a newcomer wants to read. The braces keep both on
//! one node of a Redis cluster. Webdis gives byte strings unharmed only in flat arrays of Redis' own
//! format, which no command for streams answers with; so a script reads what is new and appends the
//! batch, which is the body of the call and with that its last argument.
//!
//! An answer begins with a word of the call: Webdis before 0.1.20 may give the answer to a call that was
//! given up to whoever has its connection then. Up to where was read follows, and why nothing could be
//! appended, if so: a Redis that is full can still be read.

use crate::call::{CallBody, HttpCall, Method, Reply};
use crate::config::SyncOptions;
use crate::wire::percent_encode;
use crate::wire::resp::{self, Answer};

/// Most bytes of batches that a call asks for; one batch comes, whatever its size.
pub const READ_BYTES: u64 = 1024 * 1024;
/// Most characters of what Redis has to say.
const MOST_WORDS: usize = 100;
const STRANGE: &str = "an answer that does not read";
/// Longest answer that is read: that, and what is around them. No batch is as long; what is longer is
/// answered as one byte, so that it is in nobody's way.
pub const MAX_REPLY_BYTES: usize = 2 * 1024 * 1024;
/// Most batches of one stream in an answer: while Redis collects them it serves nobody else.
const READ_BATCHES: usize = 64;
/// The same of an answer with what was sent before: read so many at a time, so that a stream of small batches
/// takes a few calls and one of large batches no more bytes.
const LOOKED_BACK_BATCHES: usize = 1024;
/// Batches that tell load only are old after an interval; some seconds of a large fleet.
const NOW_ENTRIES: u64 = 1024;

/// Arguments: word, after which entries, most bytes, entries that the stream keeps, which stream, batch.
const EXCHANGE: &str = "\
local o={ARGV[1],ARGV[2],ARGV[3],''} local n=ARGV[4]+0 \
for k=2,1,-1 do local r=redis.call('XRANGE',KEYS[k],'('..ARGV[k+1],'+','COUNT',64) \
for i=1,#r do local b=r[i][2][2] if #b>1048576 then b='?' end n=n-#b if n<0 and #o>4 then break end o[k+1]=r[i][1] o[#o+1]=b end end \
if ARGV[7] then local w=redis.pcall('XADD',KEYS[ARGV[6]+0],'MAXLEN','~',ARGV[5],'*','b',ARGV[7]) \
if type(w)=='table' then o[4]=w.err end end return o";

/// Arguments: word, most bytes, before which entry of the news, after how many batches it ends. Answers newest
/// first, after the newest entries of both streams and the oldest that is in the answer.
const LOOK_BACK: &str = "\
local o={ARGV[1],'0-0','0-0',''} \
for k=1,2 do local r=redis.call('XREVRANGE',KEYS[k],'+','-','COUNT',1) if r[1] then o[k+1]=r[1][1] end end \
local n,c=ARGV[2]+0,ARGV[3] \
repeat local r=redis.call('XREVRANGE',KEYS[1],c,'-','COUNT',64) \
for i=1,#r do local b=r[i][2][2] if #b>1048576 then b='?' end n=n-#b if n<0 and #o>4 then return o end c='('..r[i][1] o[4]=c o[#o+1]=b end \
until #r<64 or #o>ARGV[4]+0 return o";

/// Reads what came after the cursors, about so many bytes at most, and appends a batch if there is one; to the
/// stream of news if it is said to have any.
pub fn exchange(
    options: &SyncOptions,
    word: u64,
    cursors: &[String; 2],
    most_bytes: u64,
    batch: Option<(Vec<u8>, bool)>,
) -> HttpCall {
    let [news, now] = cursors;
    let (stream, entries) = match batch {
        Some((_, true)) => ("1", options.stream_entries),
        Some((_, false)) | None => ("2", NOW_ENTRIES),
    };
    let body = batch.map_or(CallBody::Empty, |(bytes, _)| CallBody::Bytes(bytes));
    let (bytes, entries) = (most_bytes.to_string(), entries.to_string());
    let word = word.to_string();
    let arguments = [word.as_str(), news, now, &bytes, &entries, stream];
    call(options, EXCHANGE, &arguments, body)
}

/// Reads the end of the stream of news, before the entry `before`, or to its very end; about so many bytes.
pub fn look_back(options: &SyncOptions, word: u64, before: &str, most_bytes: u64) -> HttpCall {
    let (word, bytes) = (word.to_string(), most_bytes.to_string());
    // The last of them may be reached by a whole reading.
    let batches = (LOOKED_BACK_BATCHES - READ_BATCHES).to_string();
    let arguments = [word.as_str(), &bytes, before, &batches];
    call(options, LOOK_BACK, &arguments, CallBody::Empty)
}

fn call(options: &SyncOptions, script: &str, arguments: &[&str], body: CallBody) -> HttpCall {
    let name = &options.stream;
    let keys = [format!("{{{name}}}:news"), format!("{{{name}}}:now")];
    let mut path = String::from("/EVAL");
    let keys = keys.iter().map(String::as_str);
    for part in [script, "2"]
        .into_iter()
        .chain(keys)
        .chain(arguments.iter().copied())
    {
        path.push('/');
        path.push_str(&percent_encode(part));
    }
    // Redis' own format: the only one in which bytes arrive as they are.
    path.push_str(".raw");
    let authorization = options.authorization.iter();
    HttpCall {
        cluster: options.cluster.clone(),
        method: Method::Put,
        path,
        authority: options.cluster.clone(),
        headers: authorization
            .map(|value| ("authorization".to_owned(), value.clone()))
            .collect(),
        body,
        timeout_ms: options.timeout_ms,
        max_bytes: MAX_REPLY_BYTES,
    }
}

/// What a call answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told<'a> {
    /// Up to where the streams were read.
    pub cursors: [String; 2],
    /// Of [`exchange`]: why the batch was not appended. Of [`look_back`]: before which entry to look
    /// further. Empty if there is nothing to say.
    pub rest: String,
    /// The batches, in the order of the answer.
    pub batches: Vec<&'a [u8]>,
}

/// Reads the answer to the call with this word.
///
/// # Errors
/// What Redis has to say, or what is wrong with the answer.
pub fn answer(body: &[u8], word: u64) -> Result<Told<'_>, String> {
    let mut strings = strings(body)?;
    if strings.next() != Some(word.to_string().as_bytes()) {
        return Err("the answer to another call".to_owned());
    }
    let cursors = [cursor(strings.next())?, cursor(strings.next())?];
    let rest = strings.next();
    Ok(Told {
        cursors,
        rest: words(rest.unwrap_or_default()),
        batches: strings.collect(),
    })
}

/// Before which entry to look further, of what [`look_back`] answered; `None` if there is nothing.
pub fn before(rest: &str) -> Option<String> {
    let entry = rest.strip_prefix('(')?;
    cursor(Some(entry.as_bytes())).ok().map(|_| rest.to_owned())
}

/// Whether the batch of a call that failed may have been appended all the same.
pub fn may_be_there(reply: &Reply) -> bool {
    match reply {
        // What Redis refuses it has not done.
        Reply::Answer { status: 200, body } => !body.starts_with(b"-"),
        // So says Webdis when it has no connection.
        Reply::Answer { status, .. } => *status != 503,
        Reply::TimedOut | Reply::TooLong => true,
        Reply::Failed | Reply::NoRoom | Reply::NoCluster => false,
    }
}

fn strings(body: &[u8]) -> Result<impl Iterator<Item = &[u8]>, String> {
    match resp::read(body, LOOKED_BACK_BATCHES.max(2 * READ_BATCHES) + 4) {
        Some(Answer::Array(strings)) => Ok(strings.into_iter()),
        Some(Answer::Error(error)) => Err(words(error)),
        None => Err(STRANGE.to_owned()),
    }
}

/// What Redis has to say, as it may stand in a line of a log.
fn words(bytes: &[u8]) -> String {
    let words = String::from_utf8_lossy(bytes);
    let words = words.chars().filter(|one| !one.is_control());
    words.take(MOST_WORDS).collect()
}

/// An entry's id, such as `1795304726676-0`. It is sent back, so nothing else is taken for one.
fn cursor(string: Option<&[u8]>) -> Result<String, String> {
    let id = string.and_then(|string| std::str::from_utf8(string).ok());
    let number = |part: &str| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_: &u64| digits)
    };
    let legal = |id: &&str| {
        let parts = id.split_once('-');
        let parts = parts.and_then(|(ms, count)| Some((number(ms)?, number(count)?)));
        // After the last of all ids Redis finds no place to begin.
        parts.is_some_and(|(ms, _)| ms < u64::MAX)
    };
    let id = id.filter(legal).map(str::to_owned);
    id.ok_or_else(|| STRANGE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::secret::Secret;

    fn options() -> SyncOptions {
        SyncOptions {
            cluster: "webdis".to_owned(),
            stream: "fleet/1".to_owned(),
            secret: Secret::new(b"a key for the tests"),
            authorization: Some("Basic abc".to_owned()),
            interval_ms: 100,
            timeout_ms: 700,
            batch_bytes: 1000,
            stream_entries: 4096,
            warm_bytes: 1000,
            home_affinity: 0.9,
        }
    }

    #[test]
    fn a_call_names_streams_cursors_and_bounds() {
        let cursors = ["5-0".to_owned(), "7-1".to_owned()];
        let call = exchange(
            &options(),
            9,
            &cursors,
            READ_BYTES,
            Some((vec![1, 0, 255], true)),
        );
        let script = "/EVAL/local%20o%3D%7BARGV%5B1%5D%2CARGV%5B2%5D";
        assert!(call.path.starts_with(script), "{}", call.path);
        let end = "/2/%7Bfleet%2F1%7D%3Anews/%7Bfleet%2F1%7D%3Anow/9/5-0/7-1/1048576/4096/1.raw";
        assert!(call.path.ends_with(end), "{}", call.path);
        assert_eq!((call.method, call.timeout_ms), (Method::Put, 700));
        assert_eq!(call.body, CallBody::Bytes(vec![1, 0, 255]));
        let authorization = ("authorization".to_owned(), "Basic abc".to_owned());
        assert_eq!(call.headers, [authorization]);
        let idle = exchange(&options(), 9, &cursors, 512, None);
        assert!(idle.path.ends_with("/512/1024/2.raw"), "{}", idle.path);
        let back = look_back(&options(), 9, "+", READ_BYTES);
        assert!(
            back.path.ends_with("/9/1048576/%2B/960.raw"),
            "{}",
            back.path
        );
    }

    #[test]
    fn answers_are_read() {
        let body =
            b"*6\r\n$1\r\n9\r\n$3\r\n5-0\r\n$3\r\n7-1\r\n$0\r\n\r\n$2\r\n\x01\n\r\n$1\r\nx\r\n";
        let told = answer(body, 9).unwrap();
        assert_eq!(
            (told.cursors.join(" "), told.rest),
            ("5-0 7-1".to_owned(), String::new())
        );
        assert_eq!(told.batches, [&b"\x01\n"[..], b"x"]);
        let full = b"*4\r\n$1\r\n9\r\n$3\r\n5-0\r\n$3\r\n0-0\r\n$7\r\nOOM now\r\n";
        assert_eq!(answer(full, 9).unwrap().rest, "OOM now");
    }

    #[test]
    fn what_is_sent_back_is_an_entry() {
        assert_eq!(before("(5-1"), Some("(5-1".to_owned()));
        for rest in ["", "5-1", "(5", "(5-1 x", "(18446744073709551615-0"] {
            assert_eq!(before(rest), None, "{rest}");
        }
    }

    #[test]
    fn words_fit_into_a_line_of_a_log() {
        let full = b"*4\r\n$1\r\n9\r\n$3\r\n5-0\r\n$3\r\n0-0\r\n$8\r\nOOM\x1b[\r\n!\r\n";
        assert_eq!(answer(full, 9).unwrap().rest, "OOM[!");
    }

    #[test]
    fn what_redis_refused_is_not_there() {
        let answer = |status, body| Reply::Answer { status, body };
        for (reply, may) in [
            (answer(200, b"-OOM no room\r\n"), false),
            (answer(200, b"*9"), true),
            (answer(503, b""), false),
            (answer(504, b""), true),
            (Reply::TooLong, true),
            (Reply::TimedOut, true),
            (Reply::Failed, false),
            (Reply::NoCluster, false),
        ] {
            assert_eq!(may_be_there(&reply), may, "{reply:?}");
        }
    }

    #[test]
    fn a_long_look_back_is_read_and_a_longer_one_is_not() {
        let body = |batches: usize| {
            let head = "$1\r\n9\r\n$3\r\n5-0\r\n$3\r\n7-1\r\n$4\r\n(2-0\r\n";
            format!(
                "*{}\r\n{head}{}",
                batches + 4,
                "$1\r\nx\r\n".repeat(batches)
            )
        };
        let most = body(LOOKED_BACK_BATCHES);
        let told = answer(most.as_bytes(), 9).unwrap();
        assert_eq!((told.batches.len(), told.rest.as_str()), (1024, "(2-0"));
        let more = body(LOOKED_BACK_BATCHES + 1);
        assert_eq!(answer(more.as_bytes(), 9), Err(STRANGE.to_owned()));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let answer = |body: &'static [u8]| answer(body, 9).map(|_| ());
        assert_eq!(answer(b"-OOM no room\r\n"), Err("OOM no room".to_owned()));
        let other = b"*4\r\n$1\r\n8\r\n$3\r\n5-0\r\n$3\r\n0-0\r\n$0\r\n\r\n";
        assert_eq!(answer(other), Err("the answer to another call".to_owned()));
        for body in [
            &b"*2\r\n$1\r\n9\r\n$3\r\n5-0\r\n"[..],
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$4\r\n5\r\n0\r\n",
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$3\r\n5/0\r\n",
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$2\r\n5-\r\n",
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$4\r\n5-+1\r\n",
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$22\r\n18446744073709551616-0\r\n",
            b"*3\r\n$1\r\n9\r\n$3\r\n5-0\r\n$22\r\n18446744073709551615-1\r\n",
            b"<html>",
            b"",
        ] {
            assert_eq!(answer(body), Err(STRANGE.to_owned()), "{body:?}");
        }
    }
}
