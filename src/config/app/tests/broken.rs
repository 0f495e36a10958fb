//! Every kind of broken value in `app.toml`, with the place and the message that it gets.

use super::*;

#[test]
fn a_broken_value_is_reported_where_it_stands() {
    for (lines, expected) in [
        ("memory = 1", "4:1 unknown key \"memory\""),
        ("[limits]\nmemroy = \"64MiB\"", "5:1 unknown key \"memroy\""),
        ("[health]\nx = 1", "5:1 unknown key \"x\""),
        ("[scale]\nx = 1", "5:1 unknown key \"x\""),
        ("[concurrency]\nsoft = 1", "5:1 unknown key \"soft\""),
        ("[wake]\nx = 1", "5:1 unknown key \"x\""),
        ("[sleep]\nx = 1", "5:1 unknown key \"x\""),
        ("[snapshot]\nx = 1", "5:1 unknown key \"x\""),
        ("internal_port = 0", "4:17 0 is not between 1 and 65535"),
        ("internal_port = 65536", "4:17 65536 is not between 1 and 65535"),
        ("internal_port = -1", "4:17 -1 is not between 1 and 65535"),
        ("internal_port = \"80\"", "4:17 expected an integer, found a string"),
        ("internal_port = 80.0", "4:17 expected an integer, found a float"),
        (
            "internal_port = 999999999999999999999999999999999999999999",
            "4:17 999999999999999999999999999999999999999999 is not between 1 and 65535",
        ),
        ("clonable = \"true\"", "4:12 expected true or false, found a string"),
        ("clonable = 1", "4:12 expected true or false, found an integer"),
        ("health = \"/\"", "4:10 expected a table, found a string"),
        ("health = []", "4:10 expected a table, found an array"),
        ("[health]\npath = \"ready\"", "5:8 the path \"ready\" does not begin with '/'"),
        ("[health]\npath = \"/a b\"", "5:8 the path must not hold ' '"),
        ("[health]\npath = \"/a\\r\\nb\"", "5:8 the path must not hold '\\r'"),
        ("[health]\npath = \"/ä\"", "5:8 the path must not hold 'ä'"),
        ("[health]\npath = \"/\\u0000\"", "5:8 a NUL character is not allowed"),
        ("[health]\ntimeout = 1", "5:11 expected a duration, found an integer"),
        ("[health]\ntimeout = \"1\"", "5:11 bad duration \"1\": the unit must be ms, s, m, h or d"),
        ("[health]\ntimeout = \"0s\"", "5:11 0ms is not between 1ms and 1h"),
        ("[health]\ngrace_period = 2020-01-01", "5:16 expected a string, found a date"),
        ("[limits]\nmemory = 64", "5:10 expected a size, found an integer"),
        (
            "[limits]\nmemory = \"64MB\"",
            "5:10 bad size \"64MB\": the unit must be B, KiB, MiB, GiB or TiB",
        ),
        ("[limits]\nmemory = \"1KiB\"", "5:10 1 KiB is not between 4 MiB and 1 TiB"),
        ("[limits]\ncpu = 0", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = 1025", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = nan", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = inf", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = -0.5", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = 99999999999999999999", "5:7 not between 0.01 and 1024 cores"),
        ("[limits]\ncpu = \"2\"", "5:7 expected a number, found a string"),
        ("[limits]\npids = 1", "5:8 1 is not between 2 and 32768"),
        ("[scale]\nmax = 0", "5:7 0 is not between 1 and 1000"),
        ("[scale]\nmin = 2", "5:7 min is 2, more than max, which is 1"),
        ("[scale]\nmin = 2\nmax = \"3\"", "6:7 expected an integer, found a string"),
        ("[concurrency]\nhard = 0", "5:8 0 is not between 1 and 100000"),
        ("[wake]\nmax_pending = 0", "5:15 0 is not between 1 and 100000"),
        ("[wake]\ntimeout = \"2h\"", "5:11 2h is not between 1ms and 1h"),
        ("[sleep]\nstate = \"kepp\"", "5:9 unknown value \"kepp\""),
        ("[sleep]\nstate = true", "5:9 expected a string, found a boolean"),
        ("[sleep]\non_lost_state = \"panic\"", "5:17 unknown value \"panic\""),
        (
            "[sleep]\nstate = \"discard\"\non_lost_state = \"cold\"",
            "6:17 state that is discarded cannot be lost",
        ),
        ("[scale]\nmax = 2", "5:7 kept state lives in one instance only, there cannot be more"),
        (
            "[scale]\nmin = 1\n[sleep]\npark_after = \"5m\"",
            "7:14 it can never park: scale.min keeps all 1 running",
        ),
        (
            "[sleep]\npark_after = \"soon\"",
            "5:14 bad duration \"soon\": expected a whole number followed by a unit",
        ),
        ("[snapshot]\nwarm_up = \"/\"", "5:11 expected an array of strings, found a string"),
        ("[snapshot]\nwarm_up = [\"/\", 1]", "5:17 expected a string, found an integer"),
        (
            "[snapshot]\nwarm_up = [\n  \"/\",\n  \"cart\",\n]",
            "7:3 the path \"cart\" does not begin with '/'",
        ),
        ("[snapshot]\nafter_restore = \"\"", "5:17 the path \"\" does not begin with '/'"),
        ("[env]\nPORT = \"80\"", "5:1 PORT is set by the edgepoint"),
        ("[env]\n1A = \"x\"", "5:1 bad name of a variable: \"1A\""),
        ("[env]\n\"\" = \"x\"", "5:1 bad name of a variable: \"\""),
        ("[env]\n\"A=B\" = \"x\"", "5:1 bad name of a variable: \"A=B\""),
        ("[env]\n\"Ä\" = \"x\"", "5:1 bad name of a variable: \"Ä\""),
        ("[env]\nA = 1", "5:5 expected a string, found an integer"),
        ("[env]\nA = \"a\\u0000b\"", "5:5 a NUL character is not allowed"),
        ("env = 1", "4:7 expected a table, found an integer"),
        (
            "[[process]]\nname = \"web\"\ncommand = \"/bin/web\"",
            "3:1 command and [[process]] exclude each other",
        ),
    ] {
        check(lines, &[expected]);
    }
}

#[test]
fn a_broken_name_or_command_is_reported_where_it_stands() {
    let head = "name = \"a\"\nprovider = \"p\"\n";
    for (line, expected) in [
        ("", "1:1 missing key \"command\""),
        ("command = 1", "3:11 expected a string, found an integer"),
        ("command = []", "3:11 the command is empty"),
        ("command = \"  \"", "3:11 the command is empty"),
        ("command = [\"\"]", "3:12 the program has no name"),
        ("command = [1]", "3:12 expected a string, found an integer"),
        ("command = [\"a\", \"\\u0000\"]", "3:17 a NUL character is not allowed"),
        ("command = \"a | b\"", "3:11 '|' means nothing here: no shell reads the command"),
        ("command = \"a $HOME\"", "3:11 '$' means nothing here: no shell reads the command"),
        ("command = \"a 'b c'\"", "3:11 '\\'' means nothing here: no shell reads the command"),
        ("command = 'a \"b\"'", "3:11 '\"' means nothing here: no shell reads the command"),
        ("command = \"a; b\"", "3:11 ';' means nothing here: no shell reads the command"),
        ("command = \"a && b\"", "3:11 '&' means nothing here: no shell reads the command"),
        ("command = \"a > b\"", "3:11 '>' means nothing here: no shell reads the command"),
        ("command = \"a < b\"", "3:11 '<' means nothing here: no shell reads the command"),
        ("command = \"`a`\"", "3:11 '`' means nothing here: no shell reads the command"),
        ("process = 1", "3:11 expected an array of tables, found an integer"),
        ("process = [1]", "3:12 expected a table, found an integer"),
        ("[[process]]\nname = \"web\"", "3:1 missing key \"command\""),
        ("[[process]]\ncommand = \"web\"", "3:1 missing key \"name\""),
        ("[[process]]\nname = \"w\"\ncommand = \"w\"\nuser = \"x\"", "6:1 unknown key \"user\""),
        (
            "[[process]]\nname = \"w\"\ncommand = \"w\"\n[[process]]\nname = \"w\"\ncommand = \"v\"",
            "7:8 a second process named \"w\"",
        ),
        (
            "[[process]]\nname = \"W\"\ncommand = \"w\"",
            "4:8 bad name \"W\": only a-z, 0-9 and '-' are allowed",
        ),
    ] {
        check_all(&format!("{head}{line}"), &[expected]);
    }
    check_all(
        "",
        &[
            "1:1 missing key \"name\"",
            "1:1 missing key \"provider\"",
            "1:1 missing key \"command\"",
        ],
    );
    let many = "[[process]]\nname = \"a\"\ncommand = \"a\"\n".repeat(MAX_PROCESSES + 1);
    let report = read(&format!("{head}{many}")).unwrap_err();
    assert!(report.to_string().contains("more than 32 processes"), "{report}");
    let many = format!("{LEAST}snapshot.warm_up = [{}]", "\"/\",".repeat(MAX_WARM_UP + 1));
    assert!(read(&many).unwrap_err().to_string().contains("more than 100 warm-up requests"));
}
