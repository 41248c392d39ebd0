use spegel_io::hosts_toml::{is_ours_text, kept_hosts_of};
use toml::{Table, Value};

/// What others wrote into `hosts.toml` and `--prepend-existing` keeps: any text is refused with a
/// line and a reason, or kept with the same meaning, in a form that stays as it is.
pub fn hosts_toml(data: &[u8]) {
    let _either = is_ours_text(data);
    let kept = match kept_hosts_of(data) {
        Ok(kept) => kept,
        Err((line, cause)) => {
            let lines = 1 + data.iter().filter(|byte| **byte == b'\n').count();
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
            assert!(!cause.is_empty() && !cause.contains('\n'), "{cause:?}");
            return;
        }
    };
    assert_eq!(kept_hosts_of(kept.as_bytes()).as_ref(), Ok(&kept));
    let text = std::str::from_utf8(data).expect("what is kept was text");
    let said = |text: &str| text.parse::<Table>().expect("TOML").remove("host");
    // By its text: not-a-number differs from itself.
    let hosts = |text: &str| format!("{:?}", said(text).unwrap_or_else(|| Value::Table(Table::new())));
    assert_eq!(hosts(&kept), hosts(text));
}
