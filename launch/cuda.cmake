# The CUDA backend. PHALANX_CUDA=AUTO builds it where nvcc is found, ON insists on it, OFF leaves it out.
# Makes `phalanx_device`, the objects that choose the device; every program links them.
#
# cudart is linked statically and libcuda never, so that one program starts with and without a driver.
if(NOT PHALANX_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "PHALANX_CUDA=${PHALANX_CUDA} is none of AUTO, ON, OFF")
endif()
set(PHALANX_HAS_CUDA OFF)
if(NOT PHALANX_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(ENV{CUDACXX} /usr/local/cuda/bin/nvcc)  # nvcc need not be on PATH
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      # Machine code for Hopper with its own instructions (wgmma, TMA), no PTX. Others by
      # -DCMAKE_CUDA_ARCHITECTURES=...
      set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    endif()
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.25.2 stops at C++17
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    find_package(CUDAToolkit)
    # Both layouts: the toolkit's own and the one of Python packages (versioned names only).
    get_filename_component(packages "${CUDAToolkit_BIN_DIR}/../.." ABSOLUTE)
    find_library(CUBLASLT_LIBRARY NAMES cublasLt libcublasLt.so.13 libcublasLt.so.12
                 HINTS ${CUDAToolkit_LIBRARY_DIR} ${packages}/cu13/lib)
    find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2
                 HINTS ${CUDAToolkit_LIBRARY_DIR} ${packages}/nccl/lib)
    find_path(NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${packages}/nccl/include)
    if(CUDAToolkit_FOUND AND CUBLASLT_LIBRARY)
      set(PHALANX_HAS_CUDA ON)
    endif()
  endif()
  if(PHALANX_CUDA STREQUAL "ON" AND NOT PHALANX_HAS_CUDA)
    message(FATAL_ERROR "PHALANX_CUDA=ON, but no CUDA compiler, toolkit or cublasLt was found; give "
                        "-DCMAKE_CUDA_COMPILER=.../nvcc or set PHALANX_CUDA=OFF")
  endif()
endif()
message(STATUS "CUDA backend: ${PHALANX_HAS_CUDA}")

set(PHALANX_HAS_NCCL OFF)
if(PHALANX_HAS_CUDA AND PHALANX_NCCL AND NCCL_LIBRARY AND NCCL_INCLUDE)
  set(PHALANX_HAS_NCCL ON)
endif()
message(STATUS "NCCL groups: ${PHALANX_HAS_NCCL}")

set(device_sources ${CMAKE_SOURCE_DIR}/kernels/make_backend.cpp
                   ${CMAKE_SOURCE_DIR}/parallel/make_device_process_groups.cpp)
add_library(phalanx_device OBJECT ${device_sources})
target_link_libraries(phalanx_device PUBLIC phalanx_parallel)

# Registers that spill and stack frames make a kernel's speed a matter of luck, so ptxas refuses them.
set(PTXAS_STRICT --warn-on-spills,--warn-on-local-memory-usage,--warning-as-error)

if(PHALANX_HAS_CUDA)
  file(GLOB cuda_sources CONFIGURE_DEPENDS kernels/cuda/*.cu kernels/cuda/*.cpp)
  add_library(phalanx_cuda STATIC ${cuda_sources})
  set(strict_sources ${cuda_sources})
  # The double cosine of the library needs a frame; these run once.
  list(FILTER strict_sources EXCLUDE REGEX "/(random|rope_table)\\.cu$")
  set_source_files_properties(${strict_sources} PROPERTIES COMPILE_OPTIONS
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=${PTXAS_STRICT}>")
  target_include_directories(phalanx_cuda SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(phalanx_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers>")
  target_link_libraries(phalanx_cuda PUBLIC phalanx_kernels CUDA::cudart_static ${CUBLASLT_LIBRARY})
  target_compile_definitions(phalanx_device PRIVATE PHALANX_HAS_CUDA)
  target_link_libraries(phalanx_device PUBLIC phalanx_cuda)
endif()

if(PHALANX_HAS_NCCL)
  file(GLOB nccl_sources CONFIGURE_DEPENDS parallel/nccl/*.cpp)
  add_library(phalanx_nccl STATIC ${nccl_sources})
  target_include_directories(phalanx_nccl SYSTEM PUBLIC ${NCCL_INCLUDE})
  target_link_libraries(phalanx_nccl PUBLIC phalanx_parallel phalanx_cuda ${NCCL_LIBRARY})
  target_compile_definitions(phalanx_device PRIVATE PHALANX_HAS_NCCL)
  target_link_libraries(phalanx_device PUBLIC phalanx_nccl)
endif()
