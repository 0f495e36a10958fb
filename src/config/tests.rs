//! Whole configurations on a disk: all files, all problems, nothing in between.

use std::path::PathBuf;

use super::*;

const EDGE: &str = "[listen]\nhttp = [\"127.0.0.1:0\"]\n";
const ROUTE: &str = "[[route]]\nhost = \"a.example\"\napp = \"a\"\n";

struct Dir(tempfile::TempDir);

impl Dir {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            let path = dir.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The problems of loading, with the name of this directory left out.
    fn problems(&self) -> String {
        let report = match load(&self.path("edgepoint.toml")) {
            Ok(loaded) => loaded.warnings,
            Err(report) => report,
        };
        report.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn a_configuration_is_its_file_and_all_policies_in_name_order() {
    let dir = Dir::with(&[
        ("edgepoint.toml", EDGE.as_bytes()),
        ("policies/20-b.toml", ROUTE.as_bytes()),
        ("policies/10-a.toml", b"[[route]]\nname = \"first\"\npath = \"/x\"\napp = \"x\"\n"),
        ("policies/.20-b.toml", b"half written ["),
        ("policies/README.md", b"not a policy"),
    ]);
    let loaded = load(&dir.path("edgepoint.toml")).unwrap();
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.config.directories.policies, dir.path("policies"));
    let names: Vec<&str> = loaded.policy.routes().map(|name| name.as_str()).collect();
    assert_eq!(names, ["first", "20-b-1"]);
}

#[test]
fn all_problems_of_all_files_are_found_at_once() {
    let dir = Dir::with(&[
        ("edgepoint.toml", b"[listen]\nhttp = []\n"),
        ("policies/a.toml", b"[[route]]\nhots = \"a\"\napp = \"a\"\n"),
        ("policies/b.toml", b"[[route]]\napp = \"\xff\"\n"),
    ]);
    assert_eq!(
        dir.problems(),
        r#"edgepoint.toml:2:8: no address to listen on
    2 | http = []
      |        ^^
      = hint: http = ["127.0.0.1:8080"]
policies/b.toml:2:8: the file is not UTF-8 from here on
    2 | app = "�"
      |        ^
policies/a.toml:2:1: unknown key "hots"
    2 | hots = "a"
      | ^^^^
      = hint: did you mean "host"?
"#
    );
}

#[test]
fn a_missing_file_is_a_problem_with_a_hint() {
    let dir = Dir::with(&[]);
    assert_eq!(
        dir.problems(),
        "edgepoint.toml:1:1: cannot read the file: No such file or directory (os error 2)\n      \
         = hint: name the file with --config, or write one that has [listen] http = \
         [\"127.0.0.1:8080\"]\n"
    );
    let dir = Dir::with(&[("edgepoint.toml", EDGE.as_bytes())]);
    assert_eq!(
        dir.problems(),
        "policies:1:1: cannot read the directory of policies: No such file or directory (os error \
         2)\n      = hint: make it, or say where it is: [directories] policies = \"...\"\n"
    );
    assert!(load(&dir.path("edgepoint.toml")).is_err());
    // The policies are looked at even so.
    let dir = Dir::with(&[("policies/a.toml", b"x = 1")]);
    assert!(dir.problems().contains("a.toml:1:1: unknown key \"x\""), "{}", dir.problems());
    let report = load_app(dir.0.path()).unwrap_err();
    assert!(report.to_string().contains("an app is a directory with an app.toml"), "{report}");
}

#[test]
fn warnings_do_not_fail_the_load() {
    let dir = Dir::with(&[
        ("edgepoint.toml", EDGE.as_bytes()),
        ("policies/a.toml", b"[[route]]\napp = \"a\"\n"),
        ("policies/b.toml", ROUTE.as_bytes()),
    ]);
    assert!(load(&dir.path("edgepoint.toml")).is_ok());
    assert_eq!(
        dir.problems(),
        r#"policies/b.toml:1:1: warning: no request reaches this route: "a-1" takes them all
    1 | [[route]]
      | ^^^^^^^^^
      = hint: put the narrower route first
"#
    );
    let dir = Dir::with(&[("edgepoint.toml", EDGE.as_bytes()), ("policies/x", b"")]);
    assert!(dir.problems().starts_with("policies:1:1: warning: no routes"), "{}", dir.problems());
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let long = vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1];
    let dir = Dir::with(&[("edgepoint.toml", &long), ("policies/a.toml", ROUTE.as_bytes())]);
    assert_eq!(dir.problems(), "edgepoint.toml:1:1: the file is longer than 1048576 bytes\n");
}

#[test]
fn an_app_is_read_from_its_directory() {
    let text = b"name = \"a\"\nprovider = \"p\"\ncommand = \"/bin/a\"\n";
    let dir = Dir::with(&[("app.toml", text)]);
    assert_eq!(load_app(dir.0.path()).unwrap().name.as_str(), "a");
}
