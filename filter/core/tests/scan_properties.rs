//! Properties of the request scan, against `serde_json` and a plain rendering of the canonical form.
#![cfg(not(target_arch = "wasm32"))]

#[allow(dead_code, reason = "the fuzz target's part")]
mod request_scan;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use request_scan::{APIS, POINTERS, check_pieces, scan_pieces, told};
use serde_json::Value;
use warmpath_core::hash::{chain, hash, mix};
use warmpath_core::scan::{Api, CHUNK_BYTES, Field, Link, MAX_VALUE_BYTES, RequestScan};

/// JSON that keeps the order of its members.
#[derive(Clone, Debug)]
enum Json {
    Scalar(Value),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

fn text(text: &str) -> Json {
    Json::Scalar(Value::from(text))
}

fn object(members: &[(&str, Json)]) -> Json {
    let members = members
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()));
    Json::Object(members.collect())
}

fn message(role: &str, content: &str) -> Json {
    object(&[("role", text(role)), ("content", text(content))])
}

/// How a body is written.
#[derive(Clone, Copy, Debug)]
struct Style {
    pretty: bool,
    ascii: bool,
}

impl Json {
    fn write(&self, style: Style, out: &mut String) {
        let space = if style.pretty { "\n\t " } else { "" };
        match self {
            Self::Scalar(value) => write_scalar(value, style, out),
            Self::Array(elements) => {
                out.push('[');
                for (i, element) in elements.iter().enumerate() {
                    out.push_str(if i == 0 { space } else { "," });
                    element.write(style, out);
                    out.push_str(space);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (i, (key, value)) in members.iter().enumerate() {
                    out.push_str(if i == 0 { space } else { "," });
                    out.push_str(space);
                    write_scalar(&Value::from(key.as_str()), style, out);
                    out.push_str(if style.pretty { " :\r" } else { ":" });
                    value.write(style, out);
                }
                out.push_str(space);
                out.push('}');
            }
        }
    }

    fn body(&self) -> String {
        self.styled(Style {
            pretty: false,
            ascii: false,
        })
    }

    fn styled(&self, style: Style) -> String {
        let mut out = String::new();
        self.write(style, &mut out);
        out
    }
}

fn write_scalar(value: &Value, style: Style, out: &mut String) {
    for c in value.to_string().chars() {
        if style.ascii && !c.is_ascii() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04X}"));
            }
        } else if style.ascii && c == '/' {
            out.push_str("\\/");
        } else {
            out.push(c);
        }
    }
}

fn scan(api: Api, body: &str) -> RequestScan {
    let (scan, result) = scan_pieces(api, [body.as_bytes()]);
    assert_eq!(result, Ok(()), "{body}");
    scan
}

fn links(scan: &RequestScan) -> Vec<Link> {
    scan.prompt().chain(7).collect()
}

/// Cuts `bytes` at arbitrary places.
fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let pairs = cuts.iter().zip(cuts.iter().skip(1));
    pairs
        .filter_map(|(&from, &to)| bytes.get(from..to))
        .collect()
}

// The canonical form, written down a second time as plainly as possible.

struct Place<'a> {
    depth: usize,
    in_main: bool,
    key: Option<&'a str>,
    bare: bool,
    later: bool,
}

fn render(value: &Json, place: &Place, out: &mut Vec<u8>) {
    if let (Json::Scalar(Value::Number(number)), true) = (value, place.bare)
        && let Some(id) = number.as_u64().and_then(|id| u32::try_from(id).ok())
    {
        out.extend(id.to_le_bytes());
        return;
    }
    if place.later {
        out.push(0xff);
    }
    match value {
        Json::Scalar(Value::String(text)) => render_text(text, place, out),
        Json::Scalar(value) => {
            out.push(0xf9);
            out.extend(value.to_string().bytes());
        }
        Json::Array(elements) => {
            let bare = place.depth == 1 || place.depth == 2 && place.bare;
            out.extend((!bare).then_some(0xfb));
            for (i, element) in elements.iter().enumerate() {
                let place = Place {
                    depth: place.depth + 1,
                    key: None,
                    bare,
                    later: i > 0,
                    ..*place
                };
                render(element, &place, out);
            }
            out.extend((!bare).then_some(0xfa));
        }
        Json::Object(members) => {
            out.push(0xf8);
            for (key, value) in members.iter().filter(|(key, _)| key != "cache_control") {
                out.push(0xfe);
                out.extend(key.bytes());
                out.push(0xfd);
                let depth = place.depth + 1;
                let place = Place {
                    depth,
                    key: Some(key),
                    bare: false,
                    later: false,
                    ..*place
                };
                render(value, &place, out);
            }
            out.push(0xfc);
        }
    }
}

fn render_text(text: &str, place: &Place, out: &mut Vec<u8>) {
    let media = matches!(place.key, Some("url" | "data" | "image_url" | "file_data"));
    if media && (text.len() > 256 || text.starts_with("data:")) {
        out.push(0xf7);
        out.extend(hash(text.as_bytes().get(..4096).unwrap_or(text.as_bytes())).to_le_bytes());
        out.extend((text.len() as u64).to_le_bytes());
    } else if place.key == Some("content") && place.in_main {
        out.extend(b"\xfb\xf8\xfetype\xfdtext\xfetext\xfd");
        out.extend(text.bytes());
        out.extend(b"\xfc\xfa");
    } else {
        out.extend(text.bytes());
    }
}

fn rendered(value: &Json, in_main: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let place = Place {
        depth: 1,
        in_main,
        key: None,
        bare: false,
        later: false,
    };
    render(value, &place, &mut out);
    out
}

/// The chain of sections given as `(index, bytes)`.
fn chained(sections: &[(u64, Vec<u8>)], seed: u64) -> Vec<Link> {
    let mut link = Link { hash: seed, end: 0 };
    let mut links = Vec::new();
    let sections: Vec<_> = sections
        .iter()
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    for (i, (index, bytes)) in sections.iter().enumerate() {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let chunk_hash = match chunk.len() {
                CHUNK_BYTES => hash(chunk),
                _ if i + 1 == sections.len() => continue,
                _ => mix(hash(chunk), *index),
            };
            link = Link {
                hash: chain(link.hash, chunk_hash),
                end: link.end + chunk.len(),
            };
            links.push(link);
        }
    }
    links
}

// Strategies.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ -~]{0,20}",
        4 => vec(any::<char>(), 0..8).prop_map(String::from_iter),
        2 => "[a\"\\\\\n\té/\u{1f600}]{0,40}",
        1 => (select(vec!["abc ", "x\n", "é\"", "data:"]), 0..700_usize).prop_map(|(s, n)| s.repeat(n)),
    ]
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(vec![
            "model", "user", "stream", "metadata", "user_id", "messages", "prompt", "tools",
            "role", "content", "cache_control", "url", "data", "type", "text", "a/b", "max_tokens",
            "sampling_params", "max_new_tokens", "cache_salt", "input", "system",
        ]).prop_map(str::to_owned),
        3 => any_text(),
        1 => (120..140_usize).prop_map(|n| "k".repeat(n)),
    ]
}

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => any_text().prop_map(Value::from),
        2 => any::<u32>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        // Few digits: `serde_json` reads numbers of many only nearly, and so writes another text.
        1 => any::<i32>().prop_map(|n| Value::from(f64::from(n) / 64.0)),
        1 => select(vec![1e300, -2.5e-7, -0.0]).prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = any_scalar().prop_map(Json::Scalar);
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Json::Array),
            vec((any_key(), inner), 0..6).prop_map(Json::Object),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Json> {
    vec((any_key(), any_json()), 0..8).prop_map(Json::Object)
}

fn any_style() -> impl Strategy<Value = Style> {
    any::<(bool, bool)>().prop_map(|(pretty, ascii)| Style { pretty, ascii })
}

fn any_message() -> impl Strategy<Value = Json> {
    let role = select(vec!["user", "assistant", "tool", "developer"]);
    let content = prop_oneof![
        any_text().prop_map(|content| text(&content)),
        vec(any_json(), 0..3).prop_map(Json::Array),
    ];
    (role, content, any_json(), any::<bool>()).prop_map(|(role, content, other, first)| {
        let mut members = vec![("content", content), ("other", other)];
        members.insert(if first { 0 } else { 2 }, ("role", text(role)));
        object(&members)
    })
}

fn any_api() -> impl Strategy<Value = Api> {
    select(APIS.to_vec())
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn any_cut_of_the_body_tells_the_same(
        json in any_object(),
        style in any_style(),
        cuts in vec(any::<Index>(), 0..12),
        api in any_api(),
    ) {
        let body = json.styled(style);
        let whole = scan(api, &body);
        let (cut, result) = scan_pieces(api, pieces(body.as_bytes(), &cuts));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(told(&whole), told(&cut));
    }

    #[test]
    fn spacing_and_escaping_leave_no_trace(json in any_object(), api in any_api()) {
        let plain = told(&scan(api, &json.body()));
        for (pretty, ascii) in [(true, false), (false, true), (true, true)] {
            let other = told(&scan(api, &json.styled(Style { pretty, ascii })));
            prop_assert_eq!(&plain.links, &other.links);
            prop_assert_eq!(plain.conversation, other.conversation);
            prop_assert_eq!(&plain.pointers, &other.pointers);
        }
    }

    #[test]
    fn fields_are_those_that_serde_json_reads(json in any_object(), style in any_style()) {
        let body = json.styled(style);
        let scan = scan(Api::ChatCompletions, &body);
        let value: Value = serde_json::from_str(&body).unwrap();
        match value.get("model") {
            None | Some(Value::Null) => prop_assert_eq!(scan.model(), Field::Absent),
            Some(Value::String(model)) if model.len() > MAX_VALUE_BYTES => {
                prop_assert_eq!(scan.model(), Field::TooLong);
            }
            Some(Value::String(model)) => {
                prop_assert_eq!(scan.model(), Field::Text(model.as_bytes()));
            }
            Some(_) => prop_assert_eq!(scan.model(), Field::WrongType),
        }
        let string = value.get("model").and_then(Value::as_str);
        let spanned = scan.model_span().map(|span| &body[span]);
        let spanned = spanned.map(|json| serde_json::from_str::<String>(json).unwrap());
        prop_assert_eq!(spanned.as_deref(), string);
        prop_assert_eq!(scan.stream(), value.get("stream") == Some(&Value::Bool(true)));
        for (i, pointer) in POINTERS.iter().enumerate() {
            let expected = match value.pointer(pointer) {
                Some(Value::String(text)) if !text.is_empty() => Some(text.clone().into_bytes()),
                Some(Value::Number(number)) => Some(number.to_string().into_bytes()),
                _ => None,
            };
            let expected = expected.map(|text| text[..text.len().min(MAX_VALUE_BYTES)].to_vec());
            prop_assert_eq!(scan.pointer(i).map(<[u8]>::to_vec), expected, "{}", pointer);
        }
    }

    #[test]
    fn the_chain_is_that_of_the_rendered_sections(
        tools in vec(any_json(), 0..3),
        system in any_json(),
        messages in any_json(),
        style in any_style(),
        cuts in vec(any::<Index>(), 0..6),
        order in Just([0, 1, 2]).prop_shuffle(),
    ) {
        let sections = [("tools", Json::Array(tools)), ("system", system), ("messages", messages)];
        let body = object(&order.map(|i| sections[i].clone())).styled(style);
        let (scan, result) = scan_pieces(Api::Messages, pieces(body.as_bytes(), &cuts));
        prop_assert_eq!(result, Ok(()));
        let render_section = |i: usize| match &sections[i].1 {
            Json::Scalar(value) if !value.is_string() => (i as u64, Vec::new()),
            value => (i as u64, rendered(value, i == 2)),
        };
        let rendered = [0, 1, 2].map(render_section);
        prop_assert_eq!(links(&scan), chained(&rendered, 7));
        let bytes: usize = rendered.iter().map(|(_, bytes)| bytes.len()).sum();
        prop_assert_eq!(scan.prompt().bytes(), bytes);
    }

    #[test]
    fn the_next_turn_extends_the_chain(
        mut messages in vec(any_message(), 1..6),
        more in vec(any_message(), 1..4),
        tools in vec(any_json(), 0..3),
        style in any_style(),
    ) {
        let body = |messages: &[Json]| {
            object(&[("messages", Json::Array(messages.to_vec())), ("tools", Json::Array(tools.clone()))])
        };
        messages.insert(0, message("user", "hello"));
        let first = scan(Api::ChatCompletions, &body(&messages).body());
        messages.extend(more);
        let next = scan(Api::ChatCompletions, &body(&messages).styled(style));
        let (first_links, next_links) = (links(&first), links(&next));
        prop_assert!(next_links.starts_with(&first_links));
        prop_assert!(next.prompt().bytes() > first.prompt().bytes());
        prop_assert_eq!(first.prompt().conversation(7), next.prompt().conversation(7));
    }

    #[test]
    fn more_text_and_more_token_ids_extend_the_chain(
        prompt in vec(any_text(), 0..6).prop_map(|texts| texts.concat()),
        more in any_text(),
        ids in vec(any::<u32>(), 0..600),
        more_ids in vec(any::<u32>(), 1..200),
    ) {
        let of = |prompt: Value| scan(Api::Completions, &object(&[("prompt", Json::Scalar(prompt))]).body());
        let flat = |ids: &[u32]| of(Value::from(ids));
        let short = of(Value::from(prompt.as_str()));
        let long = of(Value::from(format!("{prompt}{more}")));
        prop_assert!(links(&long).starts_with(&links(&short)));
        prop_assert_eq!(told(&of(Value::from(vec![prompt.as_str()]))).links, links(&short));
        if prompt.len() >= 4096 {
            prop_assert_eq!(short.prompt().conversation(1), long.prompt().conversation(1));
        }
        let all = [ids.clone(), more_ids].concat();
        prop_assert!(links(&flat(&all)).starts_with(&links(&flat(&ids))));
        prop_assert_eq!(links(&flat(&ids)).len(), ids.len() / 128);
        prop_assert_eq!(links(&of(Value::from(vec![ids.clone()]))), links(&flat(&ids)));
        prop_assert_eq!(flat(&ids).prompt().bytes(), ids.len() * 4);
    }
}

proptest! {
    #![proptest_config(config(800))]

    #[test]
    fn a_mutated_body_is_accepted_when_serde_json_accepts_it(
        json in any_object(),
        style in any_style(),
        mutations in vec((any::<Index>(), 0..3_u8, select(MUTANTS.to_vec())), 0..4),
        cuts in vec(any::<Index>(), 0..4),
    ) {
        let mut body = json.styled(Style { ascii: true, ..style }).into_bytes();
        for (at, kind, byte) in mutations {
            let at = at.index(body.len().max(1));
            match kind {
                0 => body.insert(at, byte),
                1 if !body.is_empty() => body[at] = byte,
                _ => drop(body.drain(at..body.len().min(at + 1))),
            }
        }
        check_pieces(Api::ChatCompletions, &pieces(&body, &cuts));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..200),
        object in any::<bool>(),
        cuts in vec(any::<Index>(), 0..8),
        api in any_api(),
    ) {
        let start: &[u8] = if object { b"{\"messages\":\"" } else { b"" };
        let body = [start, &bytes].concat();
        check_pieces(api, &pieces(&body, &cuts));
    }
}

const MUTANTS: &[u8] = b"{}[]\",:\\u0019eE+-.ntfaldDcC /\n\x01\x7f";

#[test]
fn numbers_are_accepted_as_by_serde_json() {
    let parts = ["", "-", "0", "1", "12", ".", "e", "E", "+", "00", " "];
    for a in parts {
        for b in parts {
            for c in parts {
                for d in parts {
                    let body = format!("{{\"a\":{a}{b}{c}{d}}}");
                    check_pieces(Api::ChatCompletions, &[body.as_bytes()]);
                }
            }
        }
    }
}

#[test]
fn nesting_is_bounded_as_by_serde_json() {
    for depth in 120..135 {
        let (open, close) = ("{\"a\":[".repeat(depth / 2), "]}".repeat(depth / 2));
        let body = format!("{open}1{close}");
        check_pieces(Api::ChatCompletions, &[body.as_bytes()]);
        let inner = format!("{open}{{}}{close}");
        check_pieces(Api::ChatCompletions, &[inner.as_bytes()]);
    }
}

fn realistic() -> String {
    let long = "The quick brown fox said: \\\"jump\\\"\\n\\u00e9\\ud83d\\ude00 ".repeat(15);
    format!(
        r#" {{"messages": [
            {{"role":"system","content":"{long}"}},
            {{"content":[{{"type":"text","text":"{long}","cache_control":{{"type":"ephemeral"}}}},
              {{"type":"image_url","image_url":{{"url":"data:image/png;base64,{}"}}}}],"role":"user"}}],
          "model":"llama\u002d3","stream":true,"metadata":{{"user_id":12.5e-3,"x":null}},
          "max_completion_tokens":77,"cache_salt":"s\/1","a/b":[0,"one"],
          "tools":[{{"function":{{"name":"f","parameters":{{"type":"object","n":[1,-2,3.0]}}}}}}]}}
        "#,
        "QUJD".repeat(90)
    )
}

#[test]
fn a_realistic_body_may_be_cut_at_every_byte() {
    let body = realistic();
    let expected = told(&scan(Api::ChatCompletions, &body));
    assert_eq!(expected.model, format!("{:?}", Field::Text(b"llama-3")));
    assert_eq!(expected.max_tokens, Some(77));
    assert_eq!(expected.salt.as_deref(), Some(&b"s/1"[..]));
    assert_eq!(expected.pointers[2].as_deref(), Some(&b"12.5e-3"[..]));
    assert_eq!(expected.pointers[4].as_deref(), Some(&b"one"[..]));
    assert!(expected.links.len() > 2);
    for cut in 0..=body.len() {
        let (before, after) = body.as_bytes().split_at(cut);
        let (scan, result) = scan_pieces(Api::ChatCompletions, [before, after]);
        assert_eq!(result, Ok(()), "cut at {cut}");
        assert_eq!(told(&scan), expected, "cut at {cut}");
    }
    let (bytewise, result) = scan_pieces(Api::ChatCompletions, body.as_bytes().chunks(1));
    assert_eq!((told(&bytewise), result), (expected, Ok(())));
}

#[test]
fn a_body_that_ends_early_is_an_error_at_its_end() {
    let body = realistic();
    let body = body.trim_end();
    for cut in 0..body.len() {
        let (_, result) = scan_pieces(Api::ChatCompletions, [&body.as_bytes()[..cut]]);
        assert_eq!(result.map_err(|error| error.offset), Err(cut));
    }
}

#[test]
fn cache_control_moves_without_a_trace() {
    let part = |cached: bool, name: &str| {
        let mut members = vec![("type", text("text")), ("text", text(&name.repeat(400)))];
        if cached {
            let control = object(&[("type", text("ephemeral")), ("content", text("x"))]);
            members.insert(name.len() % 3, ("cache_control", control));
        }
        object(&members)
    };
    let body = |cached: [bool; 4]| {
        let content = |parts: &[Json]| Json::Array(parts.to_vec());
        let user = [
            ("role", text("user")),
            (
                "content",
                content(&[part(cached[2], "ab"), part(cached[3], "abc")]),
            ),
        ];
        object(&[
            ("tools", Json::Array(vec![part(cached[0], "tool")])),
            ("system", Json::Array(vec![part(cached[1], "s")])),
            ("messages", Json::Array(vec![object(&user)])),
        ])
    };
    let expected = links(&scan(Api::Messages, &body([false; 4]).body()));
    assert!(expected.len() > 6);
    for cached in [
        [true; 4],
        [true, false, false, true],
        [false, true, true, false],
    ] {
        assert_eq!(links(&scan(Api::Messages, &body(cached).body())), expected);
    }
}

#[test]
fn a_string_content_is_the_same_as_one_text_part() {
    let plain = message("user", &"question ".repeat(100));
    let part = object(&[
        ("type", text("text")),
        ("text", text(&"question ".repeat(100))),
    ]);
    let parts = object(&[("role", text("user")), ("content", Json::Array(vec![part]))]);
    let of = |message: &Json| {
        let body = object(&[("messages", Json::Array(vec![message.clone()]))]);
        told(&scan(Api::Messages, &body.body()))
    };
    assert_eq!(of(&plain).links, of(&parts).links);
    assert_eq!(of(&plain).conversation, of(&parts).conversation);
}
