# SPDX-License-Identifier: Apache-2.0
# What the Python wheel holds besides Python: component "wheel", which python/pyproject.toml builds
# (target weir_wheel) and installs under weir/.
#
# WEIR_PREBUILT=DIRECTORY takes the libraries that this build directory holds and compiles nothing.
# WEIR_WHEEL_UCX=ON adds UCX's modules, which it loads from ucx/ beside its own library: a wheel that
# carries UCX has to carry them (scripts/wheel).
set(WEIR_PREBUILT "" CACHE PATH "a build directory to take libraries from")
option(WEIR_WHEEL_UCX "UCX's modules in the wheel, too" OFF)

add_custom_target(weir_wheel)
if(WEIR_PREBUILT)
  install(CODE "
    set(strip)
    if(CMAKE_INSTALL_DO_STRIP)
      set(strip --strip)
    endif()
    execute_process(COMMAND \"${CMAKE_COMMAND}\" --install \"${WEIR_PREBUILT}\" --component wheel
                            --prefix \"\${CMAKE_INSTALL_PREFIX}\" \${strip}
                    COMMAND_ERROR_IS_FATAL ANY)" COMPONENT wheel)
else()
  add_dependencies(weir_wheel weir)
  install(TARGETS weir LIBRARY DESTINATION lib COMPONENT wheel)
  if(TARGET weir_cuda)
    add_dependencies(weir_wheel weir_cuda)
    install(TARGETS weir_cuda LIBRARY DESTINATION lib COMPONENT wheel)
  endif()
endif()

if(WEIR_WHEEL_UCX)
  find_package(PkgConfig REQUIRED)
  pkg_get_variable(ucx_libraries ucx libdir)
  # Each module once, under its whole name: UCX appends the ending that its own library has.
  file(GLOB modules ${ucx_libraries}/ucx/libuct_*.so.0.0.0)
  if(NOT modules)
    message(FATAL_ERROR "there are no modules of UCX in ${ucx_libraries}/ucx")
  endif()
  install(FILES ${modules} DESTINATION lib/ucx COMPONENT wheel)
endif()

if(SKBUILD)
  install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${SKBUILD_METADATA_DIR}/licenses
          COMPONENT wheel)
endif()
