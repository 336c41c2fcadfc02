# Two uses of one file. Included by the project: a target that refreshes the generated header at every build, so that reports
# carry the commit that was built. Run as a script (cmake -P): that refresh.
if(CMAKE_SCRIPT_MODE_FILE)
  execute_process(
    COMMAND git describe --always --dirty --abbrev=12 --exclude=*
    WORKING_DIRECTORY ${SOURCE_DIR} OUTPUT_VARIABLE LAPROX_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT LAPROX_COMMIT)
    set(LAPROX_COMMIT unknown)
  endif()
  configure_file(${SOURCE_DIR}/cmake/version.h.in ${OUTPUT} @ONLY)
else()
  set(LAPROX_VERSION_HEADER ${PROJECT_BINARY_DIR}/generated/laprox_version.h)
  add_custom_target(laprox_version
    COMMAND ${CMAKE_COMMAND} -D SOURCE_DIR=${PROJECT_SOURCE_DIR} -D OUTPUT=${LAPROX_VERSION_HEADER}
            -D PROJECT_VERSION=${PROJECT_VERSION} -P ${CMAKE_CURRENT_LIST_FILE}
    BYPRODUCTS ${LAPROX_VERSION_HEADER}
    COMMENT "")
endif()
