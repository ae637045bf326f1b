// Reads the symbol tables (ELF) of the program and of its own shared libraries.
#include "tests/cuda_emulator/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

struct tls_index {  // of the ABI for thread-local storage
  unsigned long module;
  unsigned long offset;
};
extern "C" void* __tls_get_addr(tls_index* index);

namespace phalanx::emulator {
namespace {

struct Symbols {
  std::vector<SharedVariable> shared;
  std::map<uintptr_t, std::string> functions;
};

/// The symbols of one ELF file loaded at `base`, whose thread-local storage is number `module`.
void read_file(const std::string& path, uintptr_t base, size_t module, Symbols& symbols) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < sizeof(ElfW(Ehdr))) return;
  const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  if (header.e_shoff + size_t{header.e_shnum} * sizeof(ElfW(Shdr)) > bytes.size()) return;
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header.e_shoff);
  for (int i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* table = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(ElfW(Sym)); ++j) {
      const char* name = names + table[j].st_name;
      const auto type = ELF64_ST_TYPE(table[j].st_info);
      if (type == STT_TLS && std::strstr(name, "B11cuda_shared") != nullptr)
        symbols.shared.push_back({module, table[j].st_value, table[j].st_size});
      if (type == STT_FUNC && table[j].st_shndx != SHN_UNDEF)
        symbols.functions.emplace(base + table[j].st_value, name);
    }
  }
}

int read_module(dl_phdr_info* info, size_t, void* symbols) {
  const std::string path = info->dlpi_name[0] == '\0' ? "/proc/self/exe" : info->dlpi_name;
  const bool of_system = path.starts_with("/lib") || path.starts_with("/usr") || path[0] != '/';
  if (!of_system)
    read_file(path, info->dlpi_addr, info->dlpi_tls_modid, *static_cast<Symbols*>(symbols));
  return 0;
}

const Symbols& symbols() {
  static const Symbols all = [] {
    Symbols found;
    dl_iterate_phdr(&read_module, &found);
    return found;
  }();
  return all;
}

}  // namespace

void* SharedVariable::address() const {
  tls_index index{module, offset};
  return __tls_get_addr(&index);
}

const std::vector<SharedVariable>& shared_variables() {
  return symbols().shared;
}

std::string function_name(const void* address) {
  const auto found = symbols().functions.find(reinterpret_cast<uintptr_t>(address));
  if (found == symbols().functions.end()) return fmt::format("at {}", address);
  int status = 0;
  char* readable = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : found->second;
  std::free(readable);
  return name;
}

}  // namespace phalanx::emulator
