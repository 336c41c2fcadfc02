# cmake --install puts the headers, the static library, the command line and a package that find_package(laprox) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS laprox EXPORT laproxTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET laprox_cuda)
  install(TARGETS laprox_cuda EXPORT laproxTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/laprox DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET laprox_cli)
  install(TARGETS laprox_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(LAPROX_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/laprox)
install(EXPORT laproxTargets NAMESPACE laprox:: DESTINATION ${LAPROX_PACKAGE_DIR})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/laprox-config.cmake.in ${PROJECT_BINARY_DIR}/laprox-config.cmake
  INSTALL_DESTINATION ${LAPROX_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/laprox-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/laprox-config.cmake ${PROJECT_BINARY_DIR}/laprox-config-version.cmake
  DESTINATION ${LAPROX_PACKAGE_DIR})
