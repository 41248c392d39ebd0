//! Reads containerd's configuration file and what it imports. Before 2.0 containerd tells its settings
//! itself; from 2.0 on these files are the only place to learn them. Follows what 2.1 does, which
//! `containerd config dump` shows.

use std::{
    collections::VecDeque,
    fs,
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use spegel_core::check::{Settings, SettingsSource};
use toml::{Table, Value};

use super::node_path;

/// Largest file read. Smaller and a long configuration is not understood; larger and a file that is none
/// takes memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Most files read. Fewer and an import may be missed; more and files that import each other without end
/// take as long.
const FILES_MAX: usize = 64;

/// The CRI plugin up to 1.7, and the sections of a file of version 2.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// The plugin that pulls images from 2.0 on, and its section in a file of version 3.
const IMAGES: &str = "io.containerd.cri.v1.images";

/// The version of files with [`IMAGES`].
const VERSION_SPLIT: i64 = 3;

/// Reads a file of the node and what it imports. `before_split` says that containerd is older than 2.0.
///
/// # Errors
///
/// Which file cannot be read or understood, and why; or which import may be on the node and not here.
pub(super) fn read(node_root: &Path, file: &str, before_split: bool) -> Result<Settings, String> {
    let files = read_all(node_root, file)?;
    let version_of = |table: &Table| table.get("version").and_then(Value::as_integer);
    // containerd leaves the sections of a file without version as they are, whatever they are called.
    let main = files.first().and_then(version_of).unwrap_or(VERSION_SPLIT);
    let newest = files.iter().filter_map(version_of).max().unwrap_or(main).max(main);
    let mut plugins = Table::new();
    for (number, table) in files.iter().enumerate() {
        let Some(Value::Table(own)) = table.get("plugins") else { continue };
        let mut own = own.clone();
        // What an older file says is translated as it is imported, but not what an import finds.
        if number > 0 && main >= VERSION_SPLIT && version_of(table).unwrap_or(main) < VERSION_SPLIT {
            translate(&mut own);
        }
        merge(&mut plugins, own);
    }
    if !before_split && newest < VERSION_SPLIT {
        translate(&mut plugins);
    }
    let source = SettingsSource::File(file.to_owned());
    let section = |path: &[&str]| table_at(&plugins, path);
    if before_split {
        let (cri, containerd) = (section(&[CRI]), section(&[CRI, "containerd"]));
        return Ok(settings(source, cri, containerd, false));
    }
    let images = section(&[IMAGES]);
    let old = ["registry", "containerd"].iter().any(|key| section(&[CRI, key]).is_some());
    Ok(settings(source, images, images, old))
}

/// Settings out of the section that holds `registry`, and the one that says what happens to layers.
fn settings(source: SettingsSource, images: Option<&Table>, layers: Option<&Table>, old: bool) -> Settings {
    let registry = images.and_then(|images| images.get("registry")).and_then(Value::as_table);
    let flag = |table: Option<&Table>, key: &str| {
        table.and_then(|table| table.get(key)).and_then(Value::as_bool).unwrap_or(false)
    };
    let keys = |key: &str| -> Vec<String> {
        let table = registry.and_then(|registry| registry.get(key)).and_then(Value::as_table);
        table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    };
    let discard = flag(layers, "discard_unpacked_layers");
    let mirrors = keys("mirrors");
    let path = registry.and_then(|registry| registry.get("config_path")).and_then(Value::as_str);
    Settings {
        source,
        config_path: path.unwrap_or_default().to_owned(),
        discard_unpacked_layers: discard,
        // Settings that the transfer service does not know make the plugin do without it.
        local_image_pull: flag(images, "use_local_image_pull")
            || discard
            || !mirrors.is_empty()
            || ["configs", "auths"].iter().any(|key| !keys(key).is_empty()),
        mirrors,
        ignored_sections: old,
    }
}

/// Moves sections of version 2 to where version 3 has them.
fn translate(plugins: &mut Table) {
    let Some(Value::Table(old)) = plugins.remove(CRI) else { return };
    let mut images = Table::new();
    if let Some(registry) = old.get("registry") {
        images.insert("registry".to_owned(), registry.clone());
    }
    if let Some(Value::Table(containerd)) = old.get("containerd")
        && containerd.contains_key("runtimes")
        && let Some(discard) = containerd.get("discard_unpacked_layers")
    {
        // containerd forgets it where no runtime is named beside it.
        images.insert("discard_unpacked_layers".to_owned(), discard.clone());
    }
    merge(plugins, Table::from_iter([(IMAGES.to_owned(), Value::Table(images))]));
}

/// Lays `over` on top of `table`.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

fn table_at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter().try_fold(table, |table, key| table.get(*key)?.as_table())
}

/// The file, then its imports, each before those it imports itself.
fn read_all(node_root: &Path, file: &str) -> Result<Vec<Table>, String> {
    let mut waiting = VecDeque::from([PathBuf::from(file)]);
    let config_dir = directory(Path::new(file)).to_owned();
    let mut seen = Vec::new();
    let mut tables = Vec::new();
    while let Some(file) = waiting.pop_front() {
        if seen.contains(&file) {
            continue;
        }
        if seen.len() == FILES_MAX {
            return Err(format!("{} imports more than {FILES_MAX} files", seen[0].display()));
        }
        let table = parse(&node_path(node_root, &file), &file)?;
        let imports = table.get("imports").and_then(Value::as_array);
        for import in imports.into_iter().flatten().filter_map(Value::as_str) {
            let pattern = clean(&directory(&file).join(import));
            let found = imported(node_root, &config_dir, &pattern).ok_or_else(|| {
                format!("{} imports {}, which is not mounted", file.display(), pattern.display())
            })?;
            waiting.extend(found);
        }
        seen.push(file);
        tables.push(table);
    }
    Ok(tables)
}

/// `shown` is its name on the node.
fn parse(path: &Path, shown: &Path) -> Result<Table, String> {
    let failed = |cause: &dyn std::fmt::Display| format!("{}: {cause}", shown.display());
    let file = fs::File::open(path).map_err(|error| failed(&error))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(failed(&format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    // The message alone: beside it the error quotes the line, which may hold a password.
    text.parse().map_err(|error: toml::de::Error| failed(&error.message().replace('\n', ", ")))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// An absolute path without `..`, as containerd cleans it: whatever links there are on the way.
fn clean(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut clean, component| {
        if component == Component::ParentDir {
            clean.pop();
        } else {
            clean.push(component);
        }
        clean
    })
}

/// The files that a pattern means; nothing where some may be on the node that cannot be seen below `node_root`.
/// containerd itself does without what is not there, and so does who sees all of the node.
fn imported(node_root: &Path, config_dir: &Path, pattern: &Path) -> Option<Vec<PathBuf>> {
    let mut found = matching(node_root, pattern);
    let in_pod = node_root != Path::new("/");
    if in_pod
        && !(is_mounted(node_root, config_dir, pattern)
            && found.iter().all(|path| leads_somewhere(node_root, path)))
    {
        return None;
    }
    found.retain(|path| node_path(node_root, path).is_file());
    Some(found)
}

/// Whether the directory of a pattern, as far as there is no wildcard in it, would be seen if it were there. In a pod
/// the directory of the configuration is; those above it are only what it is mounted at.
fn is_mounted(node_root: &Path, config_dir: &Path, pattern: &Path) -> bool {
    let has_wildcard = |path: &&Path| path.to_string_lossy().contains(['*', '?']);
    let Some(dir) = directory(pattern).ancestors().find(|path| !has_wildcard(path)) else { return false };
    let mounted =
        dir.starts_with(config_dir) || (!config_dir.starts_with(dir) && node_path(node_root, dir).is_dir());
    mounted && dir.ancestors().all(|path| leads_somewhere(node_root, path))
}

/// Links out of what is mounted lead nowhere there.
fn leads_somewhere(node_root: &Path, path: &Path) -> bool {
    let path = node_path(node_root, path);
    path.exists() || !path.is_symlink()
}

/// What a pattern means on the node, in order. `*` and `?` stand for what they do in a shell.
fn matching(node_root: &Path, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components() {
        let Component::Normal(name) = component else { continue };
        let Some(name) = name.to_str() else { return Vec::new() };
        if !name.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(name));
            continue;
        }
        let entries = |dir: PathBuf| {
            let names = fs::read_dir(node_path(node_root, &dir)).into_iter().flatten().flatten();
            let mut names: Vec<String> = names
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|entry| matches(name, entry))
                .collect();
            names.sort_unstable();
            names.into_iter().take(FILES_MAX).map(move |name| dir.join(name))
        };
        found = found.into_iter().flat_map(entries).take(FILES_MAX).collect();
    }
    found
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut chars = pattern.chars();
    match chars.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = chars.as_str();
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }
        Some(wanted) => name.chars().next().is_some_and(|first| {
            (wanted == '?' || wanted == first) && matches(chars.as_str(), &name[first.len_utf8()..])
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const R2: &str = "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path='/v2'\n";
    const D2: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndiscard_unpacked_layers=true\n";
    const RUNC: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type='r'\n";
    const R3: &str = "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path='/v3'\n";
    const D3: &str = "[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers=true\n";

    /// A file, which imports another if there is one: `config_path`, and whether layers are discarded.
    fn effective(main: &[&str], import: &[&str], before_split: bool) -> (String, bool) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/containerd");
        fs::create_dir_all(dir.join("conf.d")).unwrap();
        let (version, rest) = main.split_first().expect("there is a main file");
        let text = format!("{version}imports=['conf.d/*.toml']\n{}", rest.concat());
        fs::write(dir.join("config.toml"), text).unwrap();
        if !import.is_empty() {
            fs::write(dir.join("conf.d/a.toml"), import.concat()).unwrap();
        }
        let settings = read(root.path(), "/etc/containerd/config.toml", before_split).unwrap();
        (settings.config_path, settings.discard_unpacked_layers)
    }

    /// What `containerd config dump` of 2.1.9 gave for the same files.
    #[test]
    fn files_mean_what_containerd_2_takes_them_to_mean() {
        const V2: &str = "version=2\n";
        const V3: &str = "version=3\n";
        let cases: [(&[&str], &[&str], &str, bool); 19] = [
            (&[V2, R2, D2], &[], "/v2", false),
            (&[V2, R2, D2, RUNC], &[], "/v2", true),
            (&[V2], &[V2, R2, D2, RUNC], "/v2", true),
            (&[V2, R2], &[V2, D2], "/v2", false),
            (&[V2, D2], &[V2, R2], "/v2", false),
            (&[V3], &[V2, R2, D2], "/v2", false),
            (&[V3, R3], &[V2, D2], "/v3", false),
            (&[V2], &[V3, D3, R3], "/v3", true),
            (&[V2, R2], &[V3, D3], "", true),
            (&[V2, R2], &[V3, R3], "/v3", false),
            (&[V2, D2], &[V3, R3], "/v3", false),
            (&[V3, R3], &[V3, D3], "/v3", true),
            (&["", R2, D2], &[], "", false),
            (&["", R3, D3], &[], "/v3", true),
            (&[V3, R2, D2], &[], "", false),
            (&[V2, D3, R3], &[], "/v3", true),
            (&[V3], &[R3, D3], "/v3", true),
            (&[V2], &[R2, D2], "/v2", false),
            (&[V3], &[R2, D2], "", false),
        ];
        for (main, import, path, discard) in cases {
            assert_eq!(
                effective(main, import, false),
                (path.to_owned(), discard),
                "{main:?} imports {import:?}"
            );
        }
    }

    #[test]
    fn older_containerd_reads_the_old_sections_alone() {
        assert_eq!(effective(&["version=2\n", R2, D2], &[], true), ("/v2".to_owned(), true));
        assert_eq!(effective(&["version=2\n", R3, D3], &[], true), (String::new(), false));
        assert_eq!(effective(&["version=2\n", R2], &["version=2\n", D2], true), ("/v2".to_owned(), true));
    }

    #[test]
    fn sections_that_do_not_count_are_noticed() {
        let root = tempfile::tempdir().unwrap();
        let ignored = |text: String| {
            fs::write(root.path().join("c.toml"), text).unwrap();
            read(root.path(), "/c.toml", false).unwrap().ignored_sections
        };
        assert!(ignored(format!("version=3\n{R2}")));
        assert!(ignored(format!("version=3\n{D2}{R3}")));
        assert!(!ignored(format!("version=2\n{R2}{D2}")));
        assert!(!ignored(format!("version=3\n{R3}")));
    }

    #[test]
    fn what_the_transfer_service_cannot_do_makes_pulls_local() {
        let root = tempfile::tempdir().unwrap();
        let local = |text: &str| {
            fs::write(root.path().join("c.toml"), format!("version=3\n{text}")).unwrap();
            read(root.path(), "/c.toml", false).unwrap().local_image_pull
        };
        assert!(!local(R3));
        assert!(local(D3));
        assert!(local("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull=true\n"));
        assert!(local(
            "[plugins.'io.containerd.cri.v1.images'.registry.configs.'a.test'.auth]\nusername='a'\n"
        ));
        assert!(local("[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'a.test']\nendpoint=['a']\n"));
    }

    #[test]
    fn files_that_import_each_other_are_read_once() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.toml"), format!("version=3\nimports=['b.toml']\n{D3}")).unwrap();
        fs::write(root.path().join("b.toml"), format!("version=3\nimports=['/a.toml', 'gone.toml']\n{R3}"))
            .unwrap();
        let settings = read(root.path(), "/a.toml", false).unwrap();
        assert_eq!((settings.config_path.as_str(), settings.discard_unpacked_layers), ("/v3", true));
    }

    /// The configuration's directory alone is mounted, and the imports of a file in it are these.
    fn read_in_pod(root: &Path, imports: &str) -> Result<String, String> {
        let dir = root.join("etc/containerd");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.toml"), format!("version=3\nimports=[{imports}]\n{R3}")).unwrap();
        read(root, "/etc/containerd/config.toml", false).map(|settings| settings.config_path)
    }

    #[test]
    fn import_that_is_not_mounted_hides_the_settings() {
        let root = tempfile::tempdir().unwrap();
        for (import, shown) in [
            ("/opt/c/*.toml", "/opt/c/*.toml"),
            ("/etc/*.toml", "/etc/*.toml"),
            ("/etc/extra.toml", "/etc/extra.toml"),
            ("/etc/*/config.toml", "/etc/*/config.toml"),
            ("/*/*.toml", "/*/*.toml"),
            ("/etc/containerd.d/*.toml", "/etc/containerd.d/*.toml"),
            ("../other/a.toml", "/etc/other/a.toml"),
        ] {
            let cause = format!("/etc/containerd/config.toml imports {shown}, which is not mounted");
            assert_eq!(read_in_pod(root.path(), &format!("'{import}'")), Err(cause));
        }
        // The import of an import.
        let inner = root.path().join("etc/containerd/inner.toml");
        fs::write(&inner, "imports=['/opt/c/*.toml']").unwrap();
        let cause = "/etc/containerd/inner.toml imports /opt/c/*.toml, which is not mounted".to_owned();
        assert_eq!(read_in_pod(root.path(), "'inner.toml'"), Err(cause));
    }

    #[test]
    fn import_of_which_nothing_is_there_hides_nothing_where_it_would_be_seen() {
        let root = tempfile::tempdir().unwrap();
        let imports =
            "'/etc/containerd/config.d/*.toml', 'conf.d/*/a.toml', '*.conf', '../containerd/gone.toml'";
        assert_eq!(read_in_pod(root.path(), imports), Ok("/v3".to_owned()));
        // Whatever else is mounted.
        fs::create_dir_all(root.path().join("opt/c")).unwrap();
        assert!(read_in_pod(root.path(), "'/opt/c/d/*.toml'").is_err(), "not even its directory is seen");
        assert_eq!(read_in_pod(root.path(), "'/opt/c/*.toml'"), Ok("/v3".to_owned()));
        fs::write(root.path().join("opt/c/a.toml"), R3.replace("/v3", "/opt")).unwrap();
        assert_eq!(read_in_pod(root.path(), "'/opt/c/*.toml'"), Ok("/opt".to_owned()));
    }

    #[test]
    fn import_by_a_link_out_of_what_is_mounted_hides_the_settings() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/containerd");
        fs::create_dir_all(dir.join("conf.d")).unwrap();
        fs::write(dir.join("here.toml"), R3.replace("/v3", "/linked")).unwrap();
        symlink("../here.toml", dir.join("conf.d/a.toml")).unwrap();
        assert_eq!(read_in_pod(root.path(), "'conf.d/*'"), Ok("/linked".to_owned()));
        symlink("/nowhere/b.toml", dir.join("conf.d/b.toml")).unwrap();
        assert!(read_in_pod(root.path(), "'conf.d/*'").is_err());
        symlink("/nowhere", dir.join("other.d")).unwrap();
        assert!(read_in_pod(root.path(), "'other.d/*'").is_err());
    }

    #[test]
    fn on_the_node_itself_what_is_not_there_is_not_hidden() {
        let outside = tempfile::tempdir().unwrap();
        let dir = outside.path().join("containerd");
        fs::create_dir(&dir).unwrap();
        symlink("/nowhere/a.toml", dir.join("a.toml")).unwrap();
        let text = format!("version=3\nimports=['../gone.toml', '/nowhere/*.toml', 'a*']\n{R3}");
        fs::write(dir.join("config.toml"), text).unwrap();
        let settings = read(Path::new("/"), dir.join("config.toml").to_str().unwrap(), false).unwrap();
        assert_eq!(settings.config_path, "/v3");
    }

    #[test]
    fn file_that_is_missing_or_no_toml_is_named_without_quoting_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            read(root.path(), "/a.toml", false),
            Err("/a.toml: No such file or directory (os error 2)".to_owned())
        );
        fs::write(root.path().join("a.toml"), "[a\npassword = 'secret'").unwrap();
        let error = read(root.path(), "/a.toml", false).unwrap_err();
        assert!(
            error.starts_with("/a.toml: ") && !error.contains("secret") && !error.contains('\n'),
            "{error}"
        );
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a?c*", "abc", true),
            ("a?c*", "ac", false),
            ("*", "", true),
            ("*é?", "xéy", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
