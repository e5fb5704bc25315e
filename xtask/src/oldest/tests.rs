//! Programs that are linked against the old libraries, on this machine.

use super::*;
use crate::workspace::Workspace;

const USES_MUCH: &str = r#"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <dlfcn.h>
#include <sys/stat.h>

static int constructed = 0;
static struct Early { Early() { constructed = 17; } } early;

int main(int argc, char**) {
  struct stat about;
  if (stat("/", &about) != 0 || !S_ISDIR(about.st_mode)) return 1;
  if (fstatat(-1, "/", &about, 0) != 0 || !S_ISDIR(about.st_mode)) return 2;
  if (lstat("/nowhere at all", &about) == 0) return 3;
  int seen = 0;
  std::thread thread([&] { seen = constructed; });
  thread.join();
  if (seen != 17) return 4;
  std::ostringstream text;
  text << std::pow(argc + 1.0, 10.0);
  const std::string word = "four";
  const std::string_view view = word;
  bool thrown = false;
  try {
    volatile std::ptrdiff_t many = -argc;
    delete[] new int[many];
  } catch (const std::bad_array_new_length&) {
    thrown = true;
  }
  if (!thrown || dlsym(nullptr, "getpid") == nullptr) return 5;
  setenv("OLDEST", "1", 1);
  if (getenv("OLDEST") == nullptr) return 6;
  return text.tellp() == 4 && view.size() == 4 ? 0 : 7;
}
"#;

fn link(workspace: &Workspace, folder: &Path, source: &str) -> Result<PathBuf, String> {
    let (place, program) = (folder.join("program.cpp"), folder.join("program"));
    fs::write(&place, source).unwrap();
    let mut link = compiler(workspace, "CXX", "c++");
    link.arg("-std=c++20").arg(&place).args([folder.join("glibc.o"), folder.join("libstdcxx.o")]);
    link.arg("-L").arg(folder).arg("-Wl,--wrap=__libc_start_main").arg("-o").arg(&program);
    let output = link.output().unwrap();
    output
        .status
        .success()
        .then_some(program)
        .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn programs_need_nothing_new_and_the_linker_refuses_what_is() {
    let workspace = Workspace::locate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare_in(&workspace, folder).unwrap();
    let modified = || fs::metadata(folder.join("libc.so.6")).unwrap().modified().unwrap();
    let made = modified();
    prepare_in(&workspace, folder).unwrap();
    assert_eq!(modified(), made, "it was made twice from the same libraries");

    let program = link(&workspace, folder, USES_MUCH).unwrap();
    assert_eq!(workspace.command(&program).status().unwrap().code(), Some(0));
    #[cfg(feature = "all-tasks")]
    assert_eq!(too_new(&workspace, &program).unwrap(), Vec::<String>::new());

    // New in glibc 2.30 and in GCC 9.
    for (source, symbol) in [
        ("#include <unistd.h>\nint main() { return gettid() == 0; }", "gettid"),
        (
            "#include <memory_resource>\nint main() { return std::pmr::new_delete_resource() == nullptr; }",
            "new_delete_resource",
        ),
    ] {
        let refusal = link(&workspace, folder, source).unwrap_err();
        assert!(refusal.contains(symbol), "{refusal}");
    }
}
