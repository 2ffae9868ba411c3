//! Against answers of vLLM 0.32, and against texts that try to pass for token counts.

use super::*;

fn usage(prompt: u64, completion: u64, cached: Option<u64>) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: Some(prompt),
        completion_tokens: Some(completion),
        cached_tokens: cached,
    })
}

fn events(text: &str) -> Option<Usage> {
    let mut scan = UsageScan::new(Framing::EventStream);
    scan.push(text.as_bytes());
    scan.finish()
}

#[test]
fn vllms_bodies_are_read() {
    let chat = include_bytes!("../../../tests/fixtures/vllm/chat.json");
    assert_eq!(in_tail(chat), usage(12, 4, Some(0)));
    let completion = include_bytes!("../../../tests/fixtures/vllm/completion.json");
    assert_eq!(in_tail(completion), usage(8, 4, Some(0)));
    let responses = include_bytes!("../../../tests/fixtures/vllm/responses.json");
    assert_eq!(in_tail(responses), usage(11, 4, Some(0)));
    let messages = include_bytes!("../../../tests/fixtures/vllm/messages.json");
    assert_eq!(in_tail(messages), usage(11, 4, Some(0)));
}

#[test]
fn the_end_of_a_body_is_enough() {
    let body = include_bytes!("../../../tests/fixtures/vllm/chat.json");
    let key = body.windows(7).position(|window| window == b"\"usage\"");
    let key = key.unwrap();
    for start in 0..=key {
        assert_eq!(
            in_tail(&body[start..]),
            usage(12, 4, Some(0)),
            "from {start}"
        );
    }
    assert_eq!(in_tail(&body[key + 1..]), None);
    assert_eq!(
        in_tail(&body[..body.len() - 1]),
        None,
        "the body must be complete"
    );
}

#[test]
fn vllms_streams_are_read() {
    let chat = include_str!("../../../tests/fixtures/vllm/chat_stream.txt");
    assert_eq!(events(chat), usage(12, 4, Some(0)));
    let completion = include_str!("../../../tests/fixtures/vllm/completion_stream.txt");
    assert_eq!(events(completion), usage(8, 4, Some(0)));
}

#[test]
fn counts_are_known_as_soon_as_their_event_is() {
    let chat = include_bytes!("../../../tests/fixtures/vllm/chat_stream.txt");
    let mut scan = UsageScan::new(Framing::EventStream);
    let mut seen = Vec::new();
    for byte in chat {
        scan.push(&[*byte]);
        let counted = scan.usage().and_then(|usage| usage.completion_tokens);
        if seen.last() != Some(&counted) {
            seen.push(counted);
        }
    }
    assert_eq!(seen, [None, Some(0), Some(1), Some(2), Some(3), Some(4)]);
}

#[test]
fn events_that_wrap_the_message_are_read() {
    let messages = concat!(
        "event: message_start\n",
        "data: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],",
        "\"usage\":{\"input_tokens\":11,\"output_tokens\":0,\"cache_read_input_tokens\":8}}}\n\n",
        "event: message_delta\n",
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},",
        "\"usage\":{\"output_tokens\":9}}\n\n",
    );
    assert_eq!(events(messages), usage(11, 9, Some(8)));
    let responses = concat!(
        "data: {\"response\":{\"id\":\"r\",\"usage\":null},\"type\":\"response.created\"}\r\n\r\n",
        "data: {\"response\":{\"id\":\"r\",\"tools\":[{\"parameters\":{\"usage\":",
        "{\"input_tokens\":999}}}],\"usage\":{\"input_tokens\":5,\"output_tokens\":2,",
        "\"input_tokens_details\":{\"cached_tokens\":3}},\"user\":null},",
        "\"type\":\"response.completed\"}",
    );
    assert_eq!(events(responses), usage(5, 2, Some(3)));
}

#[test]
fn other_engines_leave_details_out() {
    let body = br#"{"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2,
        "prompt_tokens_details":null}}"#;
    assert_eq!(in_tail(body), usage(5, 2, None));
    assert_eq!(
        in_tail(br#" { "usage" : { "prompt_tokens" : 5, "completion_tokens" : 2 } } "#),
        usage(5, 2, None)
    );
}

#[test]
fn texts_and_schemas_do_not_pass_for_counts() {
    for body in [
        r#"{"content":"\"usage\":{\"prompt_tokens\":9}"}"#,
        r#"{"content":"\\\"usage\":{","x":{"prompt_tokens":9}}"#,
        r#"{"a\"usage":{"prompt_tokens":9}}"#,
        r#"{"tools":[{"usage":{"prompt_tokens":9}}]}"#,
        r#"{"x":{"usage":{"prompt_tokens":9}},"y":1}"#,
        r#"{"x":["usage",{"prompt_tokens":9}]}"#,
        r#"{"usage":"{\"prompt_tokens\":9}"}"#,
        r#"{"usage":null,"x":"usage"}"#,
        r#"{"usage":{"usage":{"prompt_tokens":9}}}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":{}}}"#,
    ] {
        assert_eq!(in_tail(body.as_bytes()), None, "{body}");
    }
    let both = r#"{"usage":{"prompt_tokens":1},"messages":[{"usage":{"prompt_tokens":9}}]}"#;
    assert_eq!(in_tail(both.as_bytes()).unwrap().prompt_tokens, Some(1));
    let deep = "data: {\"choices\":[{\"usage\":{\"prompt_tokens\":9}}]}\n\n";
    assert_eq!(events(deep), None);
}

#[test]
fn what_is_kept_has_a_bound() {
    let object = |padding: usize| {
        let padding = " ".repeat(padding);
        format!("{{\"usage\":{{{padding}\"prompt_tokens\":3}}}}")
    };
    let fits = MAX_OBJECT_BYTES - "{\"prompt_tokens\":3}".len();
    assert!(in_tail(object(fits).as_bytes()).is_some());
    assert_eq!(in_tail(object(fits + 1).as_bytes()), None);
    let mut scan = UsageScan::new(Framing::Json);
    scan.push(object(100_000).as_bytes());
    assert!(scan.object.capacity() <= MAX_OBJECT_BYTES);
    scan.push(b"{\"usage\":{");
    scan.push(&[b'x'; 100_000]);
    assert!(scan.object.capacity() <= MAX_OBJECT_BYTES);
}
