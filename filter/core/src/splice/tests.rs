use super::*;

fn changed(body: &str, changes: &[Change]) -> String {
    let changed = rewrite(body.as_bytes(), changes).expect("an object");
    String::from_utf8(changed).unwrap()
}

fn set(name: &'static str, json: &str) -> Change {
    Change::Set(name, json.to_owned())
}

#[test]
fn a_member_goes_with_its_comma_wherever_it_stands() {
    let remove = [Change::Remove(&["x"])];
    for (body, expected) in [
        (r#"{"x":1}"#, "{}"),
        (r#"{ "x" : [1,{"x":"}"}] }"#, "{  }"),
        (r#"{"x":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":2,"x":1}"#, r#"{"a":2}"#),
        (r#"{"a":2, "x":1 ,"b":3}"#, r#"{"a":2 ,"b":3}"#),
        (r#"{"x":1,"x":2,"a":2,"x":3,"x":4}"#, r#"{"a":2}"#),
        (r#"{"x":1,"x":2}"#, "{}"),
        (r#"{"\u0078":"\\","a":"x"}"#, r#"{"a":"x"}"#),
        (r#"{"a":{"x":1}}"#, r#"{"a":{"x":1}}"#),
        (" {} ", " {} "),
    ] {
        assert_eq!(changed(body, &remove), expected, "{body}");
    }
}

#[test]
fn a_member_that_is_set_is_the_last_and_the_only_one() {
    for (body, expected) in [
        ("{}", r#"{"n":1}"#),
        (r#"{"a":1.50}"#, r#"{"a":1.50,"n":1}"#),
        (r#"{"n":5,"a":1,"n":{}}"#, r#"{"a":1,"n":1}"#),
        (r#"{"n":5 }"#, r#"{"n":1 }"#),
    ] {
        assert_eq!(changed(body, &[set("n", "1")]), expected, "{body}");
    }
    let both = [set("n", "1"), set("m", "2")];
    assert_eq!(changed("{}", &both), r#"{"n":1,"m":2}"#);
}

#[test]
fn a_value_is_replaced_where_it_is_and_nowhere_else() {
    let replace = [Change::Replace("n", "1".to_owned())];
    assert_eq!(changed(r#"{"a":{"n":3}}"#, &replace), r#"{"a":{"n":3}}"#);
    assert_eq!(
        changed(r#"{ "n" : 77 ,"n":"" }"#, &replace),
        r#"{ "n" : 1 ,"n":1 }"#
    );
}

#[test]
fn a_path_leads_into_objects_only() {
    let remove = [Change::Remove(&["a", "x"])];
    let body = r#"{"x":1,"a":{"x":1,"y":2},"a":[{"x":1}],"b":{"x":1},"a":"x"}"#;
    let expected = r#"{"x":1,"a":{"y":2},"a":[{"x":1}],"b":{"x":1},"a":"x"}"#;
    assert_eq!(changed(body, &remove), expected);
}

#[test]
fn later_changes_win() {
    let (remove, replace) = (Change::Remove(&["n"]), Change::Replace("n", "7".to_owned()));
    let body = r#"{"a":1,"n":5}"#;
    assert_eq!(
        changed(body, &[remove.clone(), set("n", "1")]),
        r#"{"a":1,"n":1}"#
    );
    assert_eq!(
        changed(body, &[set("n", "1"), remove.clone()]),
        r#"{"a":1}"#
    );
    assert_eq!(
        changed(body, &[set("n", "1"), set("n", "2")]),
        r#"{"a":1,"n":2}"#
    );
    assert_eq!(
        changed(body, &[set("n", "1"), replace.clone()]),
        r#"{"a":1,"n":7}"#
    );
    assert_eq!(changed(body, &[remove, replace]), r#"{"a":1}"#);
}

#[test]
fn bytes_are_replaced_beside_members() {
    let body = r#"{"model":"alias","x":1,"stream":true}"#;
    let at = Change::At(Edit {
        span: 9..16,
        bytes: b"\"llama\"".to_vec(),
    });
    let changes = [at.clone(), Change::Remove(&["x"]), set("stream", "false")];
    assert_eq!(
        changed(body, &changes),
        r#"{"model":"llama","stream":false}"#
    );
    // Of a body that is not whole.
    assert_eq!(
        changed(r#"{"model":"alias","mess"#, &[at]),
        r#"{"model":"llama","mess"#
    );
}

#[test]
fn nothing_is_done_to_what_is_no_object() {
    for body in [
        "",
        "[]",
        "{",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1"#,
        r#"{"a":"#,
        r#"{"a":"\"#,
        r#"{"a":[1}"#,
    ] {
        let rewritten = rewrite(body.as_bytes(), &[Change::Remove(&["x"])]);
        assert!(rewritten.is_none() || body == r#"{"a":[1}"#, "{body}");
    }
}

#[test]
fn who_repeats_a_key_without_end_is_refused() {
    let body = |times: usize| format!("{{{}\"a\":1}}", "\"x\":1,".repeat(times));
    let remove = [Change::Remove(&["x"])];
    assert_eq!(changed(&body(MOST_MEMBERS), &remove), r#"{"a":1}"#);
    assert_eq!(rewrite(body(MOST_MEMBERS + 2).as_bytes(), &remove), None);
}
