# SPDX-License-Identifier: Apache-2.0
# libweir_cuda.so: the kernels and the calls of CUDA's runtime, behind one exported table. nvcc is
# called directly, so that the rest of the project stays a C project; the link needs no C++ runtime.
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/convert/cuda/*.cu
     ${CMAKE_SOURCE_DIR}/src/device/cuda/*.cu)

set(cuda_targets)
list(GET WEIR_CUDA_ARCHITECTURES 0 lowest)
foreach(architecture IN LISTS WEIR_CUDA_ARCHITECTURES)
  list(APPEND cuda_targets
       "-gencode=arch=compute_${architecture},code=sm_${architecture}")
endforeach()
list(APPEND cuda_targets "-gencode=arch=compute_${lowest},code=compute_${lowest}")

set(cuda_flags -std=c++17 -O3 -Xfatbin=-compress-all -ccbin ${WEIR_CXX}
    -I${CMAKE_SOURCE_DIR}/include -I${CMAKE_SOURCE_DIR}/src -cudart=static
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall")
if(WEIR_WERROR)
  list(APPEND cuda_flags -Werror=all-warnings)
endif()

set(cuda_objects)
foreach(source IN LISTS cuda_sources)
  get_filename_component(name ${source} NAME_WE)
  set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
  add_custom_command(OUTPUT ${object}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
    COMMAND ${WEIR_NVCC} ${cuda_flags} ${cuda_targets} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "Building CUDA object ${name}.o" VERBATIM)
  list(APPEND cuda_objects ${object})
endforeach()

get_filename_component(cuda_root ${WEIR_NVCC} REALPATH)
get_filename_component(cuda_root ${cuda_root} DIRECTORY)
find_library(WEIR_CUDART_STATIC libcudart_static.a NO_CACHE
             HINTS ${cuda_root}/../lib64 ${cuda_root}/../lib ${cuda_root}/../targets/x86_64-linux/lib)
if(NOT WEIR_CUDART_STATIC)
  message(FATAL_ERROR "libcudart_static.a is not beside ${WEIR_NVCC}")
endif()

add_library(weir_cuda SHARED ${cuda_objects})
set_source_files_properties(${cuda_objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
set_target_properties(weir_cuda PROPERTIES LINKER_LANGUAGE C)
target_link_libraries(weir_cuda PRIVATE ${WEIR_CUDART_STATIC} ${CMAKE_DL_LIBS} rt Threads::Threads)
target_link_options(weir_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined
                    -Wl,--version-script=${CMAKE_SOURCE_DIR}/src/device/cuda/exports.map)
