//! Defaults lists by examples; `tests/golden` has the answers of hydra-core itself.

use std::collections::BTreeMap;

use super::*;
use crate::{Composer, overrides};

/// Files in memory.
pub(crate) struct Files(pub(crate) BTreeMap<&'static str, &'static str>);

impl ConfigFiles for Files {
    fn read(&self, path: &str) -> Result<Option<(String, String)>, ConfigError> {
        Ok(self.0.get(path).map(|text| (format!("{path}.yaml"), (*text).to_owned())))
    }

    fn has_group(&self, group: &str) -> bool {
        self.0.keys().any(|path| path.starts_with(&format!("{group}/")))
    }

    fn options(&self, group: &str) -> Vec<String> {
        let prefix = format!("{group}/");
        self.0.keys().filter_map(|path| path.strip_prefix(prefix.as_str())).map(str::to_owned).collect()
    }
}

fn message(primary: &'static str, arguments: &[&str]) -> String {
    let files = Files(BTreeMap::from([
        ("main", primary),
        ("db/mysql", "port: 3306\n"),
        ("db/postgres", "port: 5432\n"),
    ]));
    let arguments = arguments.iter().map(|text| overrides::parse(text).unwrap()).collect();
    Composer::new().push_config(&files, "main", arguments).unwrap_err().to_string()
}

#[test]
fn refusals_name_the_file() {
    insta::assert_snapshot!(message("defaults: [{db: oracle}]\n", &[]), @"main.yaml: there is no config file `db/oracle.yaml`; in its folder are `mysql`, `postgres`");
    insta::assert_snapshot!(message("defaults:\n- db: ???\n", &[]), @"main.yaml: `db` must be one of `mysql`, `postgres`; in the shell write db=mysql");
    insta::assert_snapshot!(message("defaults: [other]\n", &[]), @"main.yaml: there is no config file `other.yaml`");
    insta::assert_snapshot!(message("defaults: {db: mysql}\n", &[]), @"main.yaml: `defaults` must be a list, found a map");
    insta::assert_snapshot!(message("defaults: [{db: 1}]\n", &[]), @"main.yaml: `db` in the defaults list takes a name or a list of names, found the whole number 1");
    insta::assert_snapshot!(message("defaults: [{db: mysql, x: y}]\n", &[]), @"main.yaml: an entry of the defaults list names one group, found 2 keys");
    insta::assert_snapshot!(message("defaults: [_self_, _self_]\n", &[]), @"main.yaml: `_self_` appears twice in the defaults list");
    insta::assert_snapshot!(message("defaults: [{override db: mysql}, {db: mysql}]\n", &[]), @"main.yaml: `override` entries must be at the end of the defaults list");
    insta::assert_snapshot!(message("a: 1\n", &["db=mysql"]), @"db=mysql: no defaults list has `db`; to add it, in the shell write +db=mysql");
    insta::assert_snapshot!(message("a: 1\n", &["~db"]), @"~db: no defaults list has `db`");
    insta::assert_snapshot!(message("a: 1\n", &["++db=mysql"]), @"++db=mysql: a config group is added with one `+`; in the shell write +db=mysql");
    insta::assert_snapshot!(message("a: 1\n", &["db=1"]), @"db=1: a config group takes a name or a list of names, found the whole number 1");
    insta::assert_snapshot!(message("a: 1\n", &["web=x", "db@p=mysql"]), @"db@p=mysql: no defaults list has `db@p`; to add it, in the shell write +db@p=mysql");
}
