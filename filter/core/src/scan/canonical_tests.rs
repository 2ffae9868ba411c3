//! Tests of the canonical form, by whole bodies.

use super::{Api, Prompt, RequestScan, ScanPlan};

fn scan(api: Api, body: &str) -> Prompt {
    let plan = ScanPlan::new(&[], true).unwrap();
    let mut scan = RequestScan::new(api);
    scan.feed(&plan, body.as_bytes()).unwrap();
    scan.finish().unwrap();
    scan.prompt().clone()
}

/// A mark of the whole canonical prompt, when it is shorter than 4096 bytes.
fn mark(api: Api, body: &str) -> (u64, usize) {
    let prompt = scan(api, body);
    assert!(prompt.bytes() < 4096);
    (prompt.conversation(0), prompt.bytes())
}

fn prompt(json: &str) -> (u64, usize) {
    mark(Api::Completions, &format!("{{\"prompt\":{json}}}"))
}

fn message(member: &str) -> (u64, usize) {
    mark(
        Api::ChatCompletions,
        &format!("{{\"messages\":[{{{member}}}]}}"),
    )
}

#[test]
fn a_plain_prompt_is_its_text() {
    assert_eq!(prompt("\"a\\u00e9\\n\"").1, 4);
    assert_eq!(prompt("\"abc\""), prompt("[\"abc\"]"));
    assert_eq!(prompt("[\"ab\",\"c\"]").1, 4);
    assert_ne!(prompt("[\"ab\",\"c\"]"), prompt("[\"a\",\"bc\"]"));
}

#[test]
fn token_ids_are_four_bytes_each() {
    assert_eq!(prompt("[1, 2,4294967295 ]").1, 12);
    assert_eq!(prompt("[1,2]"), prompt("[[1,2]]"));
    assert_eq!(prompt("[0,12345678]"), prompt("[ 0 , 12345678 ]"));
    assert_ne!(prompt("[[1],[2]]"), prompt("[[1,2]]"));
    assert_ne!(prompt("[1,2]"), prompt("[2,1]"));
    // Not an id: a mark before each, and a mark between.
    assert_eq!(prompt("[4294967296,-1]").1, 1 + 10 + 1 + 1 + 2);
    assert_eq!(prompt("[1.0]").1, 4);
}

#[test]
fn a_literal_is_no_section() {
    for json in ["null", "5", "-1.5", "true"] {
        assert_eq!(prompt(json).1, 0, "{json}");
    }
    let both = mark(
        Api::Tokenize,
        r#"{"messages":[{"role":"user"}],"prompt":null}"#,
    );
    assert_eq!(
        both,
        mark(Api::Tokenize, r#"{"messages":[{"role":"user"}]}"#)
    );
}

#[test]
fn structure_cannot_be_taken_for_text() {
    let forms = [
        r#""a":"1""#,
        r#""a":1"#,
        r#""a":[1]"#,
        r#""a":["1"]"#,
        r#""a":{"1":""}"#,
        r#""a":[]"#,
        r#""a":{}"#,
        r#""a":"""#,
        r#""a":null"#,
        r#""a":"null""#,
        r#""a1":"""#,
        r#""a":"","b":"""#,
        r#""a":{"b":""}"#,
        r#""a":[[],1]"#,
        r#""a":[[1]]"#,
    ];
    let marks: Vec<_> = forms.iter().map(|form| message(form)).collect();
    for (i, mark) in marks.iter().enumerate() {
        assert!(!marks[..i].contains(mark), "{}", forms[i]);
    }
}

#[test]
fn media_are_digested() {
    let url = |url: &str| message(&format!("\"image_url\":{{\"url\":\"{url}\"}}"));
    let digest = 1 + 8 + 8;
    let around = url("").1;
    assert_eq!(url("https://host/cat.png").1, around + 20);
    assert_eq!(url("data:,x").1, around + digest);
    assert_eq!(url(&"x".repeat(256)).1, around + 256);
    assert_eq!(url(&"x".repeat(257)).1, around + digest);
    assert_ne!(url(&"x".repeat(5000)), url(&"x".repeat(5001)));
    assert_ne!(
        url(&"x".repeat(5000)),
        url(&format!("y{}", "x".repeat(4999)))
    );
    assert_eq!(
        url(&format!("data:{}", "\\/".repeat(5000))),
        url(&format!("data:{}", "/".repeat(5000)))
    );
    assert_eq!(
        message(&format!("\"text\":\"{}\"", "x".repeat(300))).1,
        message("\"text\":\"\"").1 + 300
    );
}

#[test]
fn keys_too_long_to_match_are_still_text() {
    let key = |len: usize| message(&format!("\"{}\":1", "k".repeat(len)));
    assert_eq!(key(128).1 + 1, key(129).1);
    let plain = message(&format!("\"{}A\":1", "k".repeat(200)));
    let escaped = message(&format!("\"{}\\u0041\":1", "k".repeat(200)));
    assert_eq!(plain, escaped);
}

#[test]
fn a_conversation_is_marked_by_its_first_user_message() {
    let of = |messages: &str| {
        let body = format!("{{\"messages\":[{messages}],\"tools\":[{{\"name\":\"t\"}}]}}");
        scan(Api::ChatCompletions, &body).conversation(9)
    };
    let system = r#"{"role":"system","content":"s"}"#;
    let user = r#"{"role":"user","content":[{"type":"text","role":"user","text":"q"}]}"#;
    let turn = of(&format!("{system},{user}"));
    assert_eq!(
        turn,
        of(&format!(
            "{system},{user},{{\"role\":\"assistant\",\"content\":\"a\"}},{user}"
        ))
    );
    assert_ne!(turn, of(user));
    assert_ne!(turn, of(&format!("{system},{}", user.replace('q', "p"))));
    let late = r#"{"content":"q","role":"us\u0065r"}"#;
    assert_eq!(of(late), of(&format!("{late},{system}")));
    // Without a user message, everything short of 4096 bytes counts.
    assert_ne!(of(system), of(&format!("{system},{system}")));
}

#[test]
fn nothing_is_read_when_the_plan_does_not_ask() {
    let mut scan = RequestScan::new(Api::Completions);
    let body = format!("{{\"prompt\":\"{}\"}}", "a".repeat(2000));
    scan.feed(&ScanPlan::default(), body.as_bytes()).unwrap();
    assert_eq!(scan.prompt().bytes(), 0);
    assert_eq!(scan.prompt().chain(1).count(), 0);
}

#[test]
fn sections_of_other_apis_are_in_their_order() {
    let score = r#"{"text_2":["d1","d2"],"text_1":"query"}"#;
    assert_eq!(mark(Api::Score, score).1, 5 + 5);
    let swapped = r#"{"text_1":"query","text_2":["d1","d2"]}"#;
    assert_eq!(mark(Api::Score, score), mark(Api::Score, swapped));
    assert_eq!(
        mark(Api::Rerank, r#"{"query":"q","documents":["a","b"]}"#).1,
        4
    );
    let responses = r#"{"input":"hello","instructions":"be brief"}"#;
    assert_eq!(mark(Api::Responses, responses).1, 13);
}
