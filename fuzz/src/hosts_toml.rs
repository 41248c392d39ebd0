use spegel_io::hosts_toml::{is_ours_text, kept_hosts_of};
use toml::{Table, Value};

/// What others wrote into `hosts.toml` and `--prepend-existing` keeps: any text is refused with a
/// line and a reason, or kept with the same meaning, in a form that stays as it is and fits below
/// what the mirror writes itself.
pub fn hosts_toml(data: &[u8]) {
    let _either = is_ours_text(data);
    let kept = match kept_hosts_of(data, &[]) {
        Ok(kept) => kept,
        Err((line, cause)) => {
            let lines = 1 + data.iter().filter(|byte| **byte == b'\n').count();
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
            assert!(!cause.is_empty() && !cause.contains('\n'), "{cause:?}");
            return;
        }
    };
    assert_eq!(kept_hosts_of(kept.as_bytes(), &[]).as_ref(), Ok(&kept));
    let text = std::str::from_utf8(data).expect("what is kept was text");
    let said = |text: &str| text.parse::<Table>().expect("TOML").remove("host");
    // By its text: not-a-number differs from itself.
    let hosts = |text: &str| format!("{:?}", said(text).unwrap_or_else(|| Value::Table(Table::new())));
    assert_eq!(hosts(&kept), hosts(text));

    let target = "http://a".to_owned();
    let below = kept_hosts_of(data, std::slice::from_ref(&target)).expect("kept before");
    let whole = format!("[host.'{target}']\ncapabilities = ['pull']\n\n{below}");
    let hosts = said(&whole).and_then(|hosts| hosts.as_table().map(Table::len));
    let others = said(&below).and_then(|hosts| hosts.as_table().map(Table::len));
    assert_eq!(hosts, Some(1 + others.unwrap_or(0)));
}
