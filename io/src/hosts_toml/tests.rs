//! On real directories.

use std::fs;

use super::*;

struct CertsD(tempfile::TempDir);

impl CertsD {
    fn new(files: &[(&str, &str)]) -> Self {
        let it = Self(tempfile::tempdir().unwrap());
        for (path, content) in files {
            it.put(path, content);
        }
        it
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).unwrap()
    }

    fn configure(&self, registries: &[&str], prepend: bool) {
        configure(&self.settings(registries, prepend)).unwrap();
    }

    fn settings(&self, registries: &[&str], prepend_existing: bool) -> HostsTomlSettings {
        HostsTomlSettings {
            config_path: self.0.path().into(),
            mirrored_registries: registries.iter().map(ToString::to_string).collect(),
            mirror_targets: vec!["http://127.0.0.1:30020".into()],
            resolve_tags: true,
            prepend_existing,
            auth: None,
        }
    }

    fn restore(&self) {
        restore(self.0.path()).unwrap();
    }

    /// All files, by path, and empty directories with a slash.
    fn all(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, all: &mut Vec<String>) {
            let names = files::names(dir).unwrap();
            if names.is_empty() && !prefix.is_empty() {
                all.push(prefix.to_owned());
            }
            for name in names {
                let path = dir.join(&name);
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, &format!("{prefix}{name}/"), all);
                } else {
                    all.push(format!("{prefix}{name}"));
                }
            }
        }
        let mut all = Vec::new();
        walk(self.0.path(), "", &mut all);
        all
    }
}

const THEIRS: &str =
    "# by hand\nserver = \"https://mirror.test\"\n\n[host.\"https://a.test\"]\nca = \"ca.crt\"\n";

#[test]
fn text_is_that_of_the_go_implementation() {
    let dir = CertsD::new(&[]);
    let mut settings = dir.settings(&["https://docker.io", "http://foo.bar:5000", "*"], false);
    settings.mirror_targets = vec!["http://127.0.0.1:30020".into(), "http://fd00::1:30020".into()];
    configure(&settings).unwrap();
    assert_eq!(
        dir.all(),
        ["_backup/", "_default/hosts.toml", "docker.io/hosts.toml", "foo.bar:5000/hosts.toml"]
    );
    insta::assert_snapshot!(dir.read("docker.io/hosts.toml"), @r#"
    server = 'https://registry-1.docker.io'

    [host.'http://127.0.0.1:30020']
    capabilities = ['pull', 'resolve']
    dial_timeout = '200ms'

    [host.'http://[fd00::1]:30020']
    capabilities = ['pull', 'resolve']
    dial_timeout = '200ms'
    "#);
    insta::assert_snapshot!(dir.read("_default/hosts.toml"), @r#"
    [host.'http://127.0.0.1:30020']
    capabilities = ['pull', 'resolve']
    dial_timeout = '200ms'

    [host.'http://[fd00::1]:30020']
    capabilities = ['pull', 'resolve']
    dial_timeout = '200ms'
    "#);
    assert!(dir.read("docker.io/hosts.toml").ends_with("dial_timeout = '200ms'"), "no newline at the end");
    assert!(dir.read("foo.bar:5000/hosts.toml").starts_with("server = 'http://foo.bar:5000'\n\n[host."));

    settings.auth = Some(BasicAuth { username: b"hello".to_vec(), password: b"world".to_vec() });
    settings.resolve_tags = false;
    configure(&settings).unwrap();
    insta::assert_snapshot!(dir.read("docker.io/hosts.toml"), @r#"
    server = 'https://registry-1.docker.io'

    [host.'http://127.0.0.1:30020']
    capabilities = ['pull']
    dial_timeout = '200ms'
    [host.'http://127.0.0.1:30020'.header]
    Authorization = 'Basic aGVsbG86d29ybGQ='

    [host.'http://[fd00::1]:30020']
    capabilities = ['pull']
    dial_timeout = '200ms'
    [host.'http://[fd00::1]:30020'.header]
    Authorization = 'Basic aGVsbG86d29ybGQ='
    "#);
}

#[test]
fn no_registries_means_all() {
    let dir = CertsD::new(&[]);
    dir.configure(&[], false);
    assert_eq!(dir.all(), ["_backup/", "_default/hosts.toml"]);
    dir.restore();
    assert_eq!(dir.all(), Vec::<String>::new());
    dir.restore();
}

#[test]
fn what_was_there_is_kept_and_comes_back() {
    let dir = CertsD::new(&[
        ("docker.io/hosts.toml", THEIRS),
        ("docker.io/ca.crt", "ca"),
        ("b.test/hosts.toml", "x = 1"),
    ]);
    let before = dir.all();
    for _ in 0..2 {
        dir.configure(&["https://docker.io"], false);
        assert_eq!(
            dir.all(),
            [
                "_backup/b.test/hosts.toml",
                "_backup/docker.io/ca.crt",
                "_backup/docker.io/hosts.toml",
                "docker.io/hosts.toml"
            ]
        );
    }
    dir.restore();
    assert_eq!(dir.all(), before);
    assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
}

#[test]
fn existing_hosts_follow_ours_and_their_files_are_copied_once() {
    let theirs = "server = 'https://else.test'\n\
        [host]\n\
        [host.\"https://z.test\"]\ncapabilities = [\"pull\"] # why\nskip_verify = true\n\
        [host.\"https://z.test\".header]\nx-a = [\"1\", \"it's\"]\n\
        [host.'https://a.test']\nclient = [['client.cert', 'client.key']]\noverride_path = false\n";
    let dir = CertsD::new(&[
        ("docker.io/hosts.toml", theirs),
        ("docker.io/sub/client.cert", "cert"),
        ("docker.io/ca.crt", "ca"),
    ]);
    for _ in 0..3 {
        dir.configure(&["https://docker.io"], true);
    }
    insta::assert_snapshot!(dir.read("docker.io/hosts.toml"), @r#"
    server = 'https://registry-1.docker.io'

    [host.'http://127.0.0.1:30020']
    capabilities = ['pull', 'resolve']
    dial_timeout = '200ms'

    [host.'https://z.test']
    capabilities = ['pull']
    skip_verify = true

    [host.'https://z.test'.header]
    x-a = ['1', "it's"]

    [host.'https://a.test']
    client = [['client.cert', 'client.key']]
    override_path = false
    "#);
    assert_eq!(dir.read("docker.io/ca.crt"), "ca");
    assert_eq!(dir.read("docker.io/sub/client.cert"), "cert");
    // Without the flag they go again.
    dir.configure(&["https://docker.io"], false);
    assert!(!dir.all().contains(&"docker.io/ca.crt".into()));
    dir.configure(&["https://docker.io"], true);
    dir.restore();
    assert_eq!(dir.all(), ["docker.io/ca.crt", "docker.io/hosts.toml", "docker.io/sub/client.cert"]);
    assert_eq!(dir.read("docker.io/hosts.toml"), theirs);
}

#[test]
fn hosts_in_inline_tables_and_dotted_keys_are_kept_too() {
    let forms = [
        "host = { 'https://a.test' = { capabilities = ['pull'], header = { x = 'y' } } }\n",
        "host.'https://a.test'.capabilities = ['pull']\nhost.'https://a.test'.header.x = 'y'\n",
        "[host]\n'https://a.test' = { capabilities = ['pull'], header = { x = 'y' } }\n",
        "[host.'https://a.test']\ncapabilities = ['pull']\nheader = { x = 'y' }\n",
    ];
    for form in forms {
        let kept = text::kept_hosts(form.as_bytes(), &[]).unwrap();
        assert_eq!(
            kept,
            "[host.'https://a.test']\ncapabilities = ['pull']\n\n[host.'https://a.test'.header]\nx = 'y'",
            "{form}"
        );
        // What is written is TOML that says the same.
        assert_eq!(text::kept_hosts(kept.as_bytes(), &[]).unwrap(), kept);
    }
}

#[test]
fn odd_values_stay_what_they_are() {
    let odd = "[host.'a']\nn = 1\nf = 1.5\nd = 1979-05-27\ns = \"a'b\\\\\\n\\\"\"\nt = [{ x = 1 }]\n\n[[host.'a'.u]]\ny = 2\n";
    let kept = text::kept_hosts(odd.as_bytes(), &[]).unwrap();
    let value = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
    assert_eq!(value(&kept), value(odd));
}

#[test]
fn lists_of_tables_within_lists_of_tables_are_not_emptied() {
    let kept = text::kept_hosts(b"[[host.a.b]]\n[[host.a.b.c]]\nd = 1\n[[host.a.b.c]]\n", &[]).unwrap();
    assert_eq!(kept, "[host.a]\nb = [{c = [{d = 1}, {}]}]");
}

/// Releases before the dial timeout wrote files that are not recognised as this program's.
#[test]
fn host_that_is_the_mirror_is_not_named_twice() {
    let theirs = "[host.'http://127.0.0.1:30020']\ncapabilities = ['pull']\n\n[host.'https://a.test']\n";
    let dir = CertsD::new(&[("docker.io/hosts.toml", theirs)]);
    dir.configure(&["https://docker.io"], true);
    let written = dir.read("docker.io/hosts.toml");
    let hosts = toml::from_str::<toml::Table>(&written).unwrap()["host"].as_table().unwrap().clone();
    assert_eq!(hosts.keys().collect::<Vec<_>>(), ["http://127.0.0.1:30020", "https://a.test"]);
}

#[test]
fn files_that_are_no_toml_stop_everything_before_anything_changed() {
    for (content, line) in [("a = 1\nb = \n", 2), ("\n\nhost = 1\n", 3), ("host.a = 1", 1)] {
        let dir = CertsD::new(&[("docker.io/hosts.toml", content), ("z.test/ca.crt", "ca")]);
        let before = dir.all();
        let settings = dir.settings(&["https://docker.io", "https://z.test"], true);
        let message = configure(&settings).unwrap_err().to_string();
        assert!(message.contains(&format!("docker.io/hosts.toml:{line}: ")), "{message}");
        assert!(message.contains("--prepend-existing"), "{message}");
        assert_eq!(dir.all(), before);
        dir.configure(&["https://docker.io"], false);
    }
}

#[test]
fn files_that_others_put_there_later_stay() {
    let dir = CertsD::new(&[("docker.io/hosts.toml", THEIRS)]);
    dir.configure(&["https://docker.io"], false);
    dir.put("late.test/hosts.toml", THEIRS);
    dir.put("docker.io/late.crt", "late");
    dir.configure(&["https://docker.io"], false);
    let stays = ["docker.io/hosts.toml", "docker.io/late.crt", "late.test/hosts.toml"];
    assert_eq!(dir.all(), [&["_backup/docker.io/hosts.toml"], &stays[..]].concat());
    dir.restore();
    assert_eq!(dir.all(), stays);
    assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
}

#[test]
fn foreign_file_in_the_way_is_backed_up_and_comes_back() {
    let dir = CertsD::new(&[]);
    dir.configure(&["https://docker.io"], false);
    dir.put("docker.io/hosts.toml", THEIRS);
    dir.put("a.test/hosts.toml", THEIRS);
    dir.configure(&["https://docker.io", "https://a.test"], true);
    assert!(dir.read("docker.io/hosts.toml").ends_with("[host.'https://a.test']\nca = 'ca.crt'"));
    dir.restore();
    assert_eq!(dir.all(), ["a.test/hosts.toml", "docker.io/hosts.toml"]);
    assert_eq!(dir.read("a.test/hosts.toml"), THEIRS);
}

#[test]
fn registry_that_is_mirrored_no_longer_is_dropped() {
    let dir = CertsD::new(&[]);
    dir.configure(&["https://docker.io", "https://a.test"], false);
    dir.configure(&["https://docker.io"], false);
    assert_eq!(dir.all(), ["_backup/", "docker.io/hosts.toml"]);
}

#[test]
fn what_the_go_implementation_left_is_cleaned_up() {
    // With --prepend-existing its copies grow at each start.
    let ours = "server = 'https://registry-1.docker.io'\n\n[host.'http://10.0.0.1:30020']\n\
        capabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n\n[host.'https://a.test']\nca = 'ca.crt'";
    let left = [
        ("_backup/docker.io/hosts.toml", THEIRS),
        ("_backup/docker.io/ca.crt", "ca\n"),
        ("_backup/b.test/hosts.toml", "x = 1"),
        ("docker.io/hosts.toml", ours),
        ("docker.io/ca.crt", "ca\nca\nca\n"),
        (
            "_default/hosts.toml",
            "[host.'http://10.0.0.1:30020']\ncapabilities = ['pull']\ndial_timeout = '200ms'",
        ),
    ];
    let dir = CertsD::new(&left);
    dir.configure(&["https://docker.io"], true);
    assert_eq!(dir.read("docker.io/ca.crt"), "ca\n");
    for dir in [dir, CertsD::new(&left)] {
        dir.restore();
        assert_eq!(dir.all(), ["b.test/hosts.toml", "docker.io/ca.crt", "docker.io/hosts.toml"]);
        assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
        assert_eq!(dir.read("docker.io/ca.crt"), "ca\n");
    }
}

#[test]
fn change_made_after_the_backup_survives_the_restore() {
    let dir = CertsD::new(&[("docker.io/hosts.toml", THEIRS), ("docker.io/ca.crt", "old")]);
    dir.configure(&["https://docker.io"], true);
    dir.put("docker.io/ca.crt", "renewed");
    dir.configure(&["https://docker.io"], true);
    dir.restore();
    assert_eq!(dir.read("docker.io/ca.crt"), "renewed");
    assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
}

#[test]
fn interrupted_run_is_continued() {
    let dir = CertsD::new(&[
        ("_backup/docker.io/hosts.toml", THEIRS),
        (".spegel-docker.io/hosts.toml", "half"),
        ("docker.io/hosts.toml", THEIRS),
    ]);
    dir.configure(&["https://docker.io"], false);
    assert_eq!(dir.all(), ["_backup/docker.io/hosts.toml", "docker.io/hosts.toml"]);
    assert!(text::is_ours(dir.read("docker.io/hosts.toml").as_bytes()));
    dir.put("docker.io/.spegel-hosts.toml", "half");
    dir.configure(&["https://docker.io"], false);
    dir.restore();
    assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
}

#[test]
fn links_and_permissions_survive() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let elsewhere = CertsD::new(&[("real/hosts.toml", THEIRS)]);
    let dir = CertsD::new(&[("a.test/client.key", "secret")]);
    let key = dir.0.path().join("a.test/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let link = dir.0.path().join("docker.io");
    symlink(elsewhere.0.path().join("real"), &link).unwrap();
    for _ in 0..2 {
        dir.configure(&["https://docker.io", "https://a.test"], true);
        assert_eq!(elsewhere.read("real/hosts.toml"), THEIRS);
        assert!(dir.read("docker.io/hosts.toml").contains("a.test"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }
    dir.restore();
    assert!(link.is_symlink());
    assert_eq!(dir.read("docker.io/hosts.toml"), THEIRS);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(dir.all(), ["a.test/client.key", "docker.io"]);
}

#[test]
fn a_file_of_others_that_cannot_be_read_changes_nothing_and_the_next_run_is_the_first() {
    let certs = CertsD::new(&[("other.example/hosts.toml", "server = 'https://other.example'")]);
    let file = certs.0.path().join("other.example/hosts.toml");
    // Root reads what it likes; what is too large it refuses as well.
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
    let error = configure(&certs.settings(&["https://docker.io"], false)).unwrap_err().to_string();
    assert!(error.contains("other.example"), "{error}");
    assert_eq!(certs.all(), ["other.example/hosts.toml"]);

    fs::File::options().write(true).open(&file).unwrap().set_len(10).unwrap();
    certs.configure(&["https://docker.io"], false);
    assert_eq!(certs.all(), ["_backup/other.example/hosts.toml", "docker.io/hosts.toml"]);
}

#[test]
fn wrong_flags_are_all_named_at_once_and_change_nothing() {
    let dir = CertsD::new(&[]);
    let mut settings = dir.settings(&["docker.io", "https://a.test/v2", "*", "_default"], false);
    settings.config_path = dir.0.path().join("certs.d");
    let error = configure(&settings).unwrap_err().to_string();
    settings.mirrored_registries.clear();
    settings.mirror_targets.clear();
    let missing = configure(&settings).unwrap_err().to_string();
    insta::assert_snapshot!(format!("{error}\n{missing}"), @r#"
    --mirrored-registries: "docker.io": the scheme is missing; expected http[s]://HOST[:PORT]; --mirrored-registries: "https://a.test/v2": a path is not supported, not even a single slash; expected http[s]://HOST[:PORT]; --mirrored-registries: "_default": at most one wildcard is allowed
    --mirror-targets: at least one is needed
    "#);
    assert!(!settings.config_path.exists());
    restore(&settings.config_path).unwrap();
}

#[test]
fn basic_auth_is_read_as_bytes_without_the_last_newline() {
    let dir = CertsD::new(&[]);
    assert_eq!(BasicAuth::read(dir.0.path()).unwrap(), None);
    dir.put("username", "hello");
    assert_eq!(BasicAuth::read(dir.0.path()).unwrap().unwrap().header(), "Basic aGVsbG86");
    dir.put("password", "world\n");
    assert_eq!(BasicAuth::read(dir.0.path()).unwrap().unwrap().header(), "Basic aGVsbG86d29ybGQ=");
    dir.put("password", " world\n\n");
    assert_eq!(BasicAuth::read(dir.0.path()).unwrap().unwrap().password, b" world\n");
    dir.put("username", "a:b");
    assert!(BasicAuth::read(dir.0.path()).unwrap_err().to_string().contains("colon"));
}
