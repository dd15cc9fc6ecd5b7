# SPDX-License-Identifier: Apache-2.0
# Writes files as C arrays: cmake -DFOLDER=… -DFILES="a.html;b.js" -DOUTPUT=… -P WeirEmbed.cmake. Each is
# `const unsigned char weir_web_<name>[]`, dots as underscores, with its length in …_bytes.
set(text "#include \"directory/web_assets.h\"\n")
foreach(file IN LISTS FILES)
  file(READ ${FOLDER}/${file} bytes HEX)
  string(LENGTH "${bytes}" n_digits)
  math(EXPR n_bytes "${n_digits} / 2")
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
  string(REGEX REPLACE "(................................................................................)"
         "\\1\n" bytes "${bytes}")
  string(REPLACE "." "_" name ${file})
  string(APPEND text "const unsigned char weir_web_${name}[] = {\n${bytes}0};\n"
                     "const size_t weir_web_${name}_bytes = ${n_bytes};\n")
endforeach()
file(WRITE ${OUTPUT} "${text}")
