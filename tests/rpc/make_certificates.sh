#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# make_certificates.sh DIR - two CAs and what the tests of TLS show each other, by the openssl program.
set -eu
cd "$1"

authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.pem" 2>/dev/null
}

certificate() { # NAME CA DAYS COMMON-NAME ALTERNATIVES
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$4" \
        -addext "subjectAltName=$5" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days "$3" \
        -copy_extensions copy -out "$1.pem" 2>/dev/null
}

authority ca
authority other-ca
certificate server ca 2 directory "DNS:localhost,IP:127.0.0.1,IP:::1"
certificate renewed ca 2 renewed "DNS:localhost,IP:127.0.0.1,IP:::1"
certificate other-name ca 2 other "DNS:other,DNS:other.example"
certificate expired ca -1 directory "DNS:localhost,IP:127.0.0.1"
certificate worker ca 2 trainer-0 "DNS:localhost,IP:127.0.0.1,IP:::1"
certificate stranger other-ca 2 stranger "DNS:localhost,IP:127.0.0.1"
