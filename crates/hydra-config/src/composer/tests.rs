//! Layers and overrides by examples; `tests/golden` has the answers of hydra-core itself.

use super::*;

const BASE: &str = "trainer: {devices: 8, precision: bf16}\nmodel:\n  data:\n    file: ???\n    list: [1, 2]\n  max: ${trainer.devices}\n";

fn compose(overrides: &[&str]) -> Result<Composer, ConfigError> {
    let mut composer = Composer::new();
    composer.push_yaml("built-in defaults", BASE)?;
    composer.apply_overrides(&overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())?;
    Ok(composer)
}

#[test]
fn overrides_set_add_and_delete() {
    let composer = compose(&[
        "trainer.devices=1",
        "++model.x.y=2",
        "+model.z={a:1}",
        "~model.data.list",
        "model.data={file:f}",
    ])
    .unwrap();
    assert_eq!(composer.node().get("trainer.devices"), Some(&Node::Int(1)));
    assert_eq!(composer.node().get("model.x.y"), Some(&Node::Int(2)));
    assert_eq!(composer.node().get("model.z.a"), Some(&Node::Int(1)));
    assert_eq!(composer.node().get("model.data.list"), None);
    assert_eq!(composer.origin("trainer.devices").unwrap().to_string(), "command line: trainer.devices=1");
    assert_eq!(composer.origin("trainer.precision").unwrap().to_string(), "built-in defaults line 1");
}

#[test]
fn refusals_name_the_key() {
    let message = |text: &str| compose(&[text]).unwrap_err().to_string();
    insta::assert_snapshot!(message("trainer.device=1"), @"unknown key `trainer.device` (command line: trainer.device=1), did you mean `trainer.devices`?; in the shell write trainer.devices=1; to add a new key, in the shell write ++trainer.device=1");
    insta::assert_snapshot!(message("+trainer.devices=1"), @"`+trainer.devices=1` would add a key that exists; in the shell write trainer.devices=1");
    insta::assert_snapshot!(message("~nope"), @"cannot delete with `~nope`: there is no key `nope`");
    insta::assert_snapshot!(message("model.data={nope:1}"), @"unknown key `model.data.nope` (command line: model.data={nope:1}); to add a new key, in the shell write '++model.data={nope:1}'");
}

#[test]
fn merging_follows_omegaconf() {
    let mut composer = compose(&["model.data.file=x"]).unwrap();
    composer.push_yaml("later", "model:\n  data:\n    file: ???\n    list: [3]\n  max: {a: 1}\n").unwrap();
    assert_eq!(composer.node().get("model.data.file"), Some(&Node::from("x")));
    assert_eq!(composer.node().get("model.data.list"), Some(&Node::List(vec![Node::Int(3)])));
    assert_eq!(composer.origin("model.max.a").unwrap().to_string(), "later line 5");
    assert!(composer.push_yaml("bad", "model: {data: {list: {a: 1}}}\n").is_err());
}

proptest::proptest! {
    #[test]
    fn any_overrides_fit_or_are_refused(
        overrides in proptest::collection::vec("[+~]{0,2}(trainer|model|data|list|max|x|\\.|0|1){1,5}=?[a1${}.:,\\[\\]'?max]{0,12}", 0..4)
    ) {
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        if let Ok(composer) = compose(&overrides) {
            let _ = composer.node().to_yaml();
            let _ = composer.resolve(&|_| None);
        }
    }
}
